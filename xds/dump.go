package xds

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

// configDump shows what a connected proxy should have. Each resource is followed by
// its version and by the objects that caused it; secrets are named and not shown.
func (s *Server) configDump(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("proxyID")
	if id == "" {
		http.Error(w, "name a connected proxy: ?proxyID=POD.NAMESPACE (see /debug/syncz)", http.StatusBadRequest)
		return
	}
	sets, ok := s.setsOf(id)
	if !ok {
		http.Error(w, "proxy "+id+" is not connected to this control plane", http.StatusNotFound)
		return
	}
	var types []string
	if q := r.URL.Query().Get("types"); q != "" {
		types = strings.Split(strings.ToLower(q), ",")
	}
	name := r.URL.Query().Get("name")
	var out dump
	for t := range envoy.NumTypes {
		if t == envoy.VirtualHost { // shown in their tables, as Envoy shows them
			continue
		}
		if types != nil && !slices.Contains(types, strings.ToLower(shortName(t))) {
			continue
		}
		var list []*envoy.Resource
		for _, set := range sets {
			for _, res := range set.Resources[t] {
				if name == "" || res.Name == name {
					list = append(list, res)
				}
			}
		}
		sortByName(list)
		if len(list) > 0 {
			out.Configs = append(out.Configs, section(t, list, sets))
		}
	}
	writeJSON(w, out)
}

// setsOf returns what the latest stream of a proxy should have.
func (s *Server) setsOf(id string) ([]*envoy.Set, bool) {
	list := s.connected()
	slices.Reverse(list)
	for _, ses := range list {
		if ses.name() == id {
			ses.mu.Lock()
			defer ses.mu.Unlock()
			return ses.withSecrets, true
		}
	}
	return nil, false
}

// dump is an envoy.admin.v3.ConfigDump, with a field weft_causes beside each
// resource. It is put together as JSON, because protobuf has no place for that field.
type dump struct {
	Configs []map[string]any `json:"configs"`
}

// section is the part of a dump for one type, under Envoy's names.
func section(t envoy.Type, list []*envoy.Resource, sets []*envoy.Set) map[string]any {
	names := [envoy.NumTypes]struct{ message, list, field string }{
		envoy.Cluster:   {"ClustersConfigDump", "dynamic_active_clusters", "cluster"},
		envoy.Endpoints: {"EndpointsConfigDump", "dynamic_endpoint_configs", "endpoint_config"},
		envoy.Listener:  {"ListenersConfigDump", "dynamic_listeners", "listener"},
		envoy.Route:     {"RoutesConfigDump", "dynamic_route_configs", "route_config"},
		envoy.Secret:    {"SecretsConfigDump", "dynamic_active_secrets", "secret"},
	}[t]
	entries := make([]map[string]any, 0, len(list))
	for _, res := range list {
		e := map[string]any{"version_info": res.Version, names.field: resourceJSON(res)}
		if len(res.Causes) > 0 {
			e["weft_causes"] = causes(res.Causes)
		}
		switch t {
		case envoy.Route:
			var inside []map[string]any
			whole := *res
			for _, s := range sets {
				for _, host := range hosts(s, res.Name) {
					whole.Body = protowire.AppendBytes(protowire.AppendTag(slices.Clip(whole.Body), routeVirtualHosts, protowire.BytesType), host.Body)
					inside = append(inside, map[string]any{"name": host.Name, "version_info": host.Version, "weft_causes": causes(host.Causes)})
				}
			}
			if len(inside) > 0 {
				e[names.field], e["weft_virtual_hosts"] = resourceJSON(&whole), inside
			}
		case envoy.Listener:
			e = map[string]any{"name": res.Name, "active_state": e}
		case envoy.Secret:
			e["name"] = res.Name
		}
		entries = append(entries, e)
	}
	return map[string]any{
		"@type":    "type.googleapis.com/envoy.admin.v3." + names.message,
		names.list: entries,
	}
}

// routeVirtualHosts is the field of a RouteConfiguration that holds virtual hosts: appending one to the encoded message adds it.
const routeVirtualHosts = 2

// resourceJSON decodes a resource. Of secrets only type and name are shown.
func resourceJSON(res *envoy.Resource) json.RawMessage {
	a := &anypb.Any{TypeUrl: res.Type.TypeURL(), Value: res.Body}
	if res.Type == envoy.Secret {
		return quoteJSON(map[string]string{"@type": a.TypeUrl, "name": res.Name})
	}
	data, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(a)
	if err != nil {
		return quoteJSON(map[string]string{"@type": a.TypeUrl, "name": res.Name, "error": "cannot be shown as JSON: " + err.Error()})
	}
	return data
}

func quoteJSON(v map[string]string) json.RawMessage {
	data, _ := json.Marshal(v) // a map of strings always can be
	return data
}

func causes(refs []mesh.Ref) []string {
	out := make([]string, len(refs))
	for i, r := range refs {
		out[i] = r.String()
	}
	return out
}
