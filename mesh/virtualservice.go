package mesh

import (
	"slices"
	"sort"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"
	networking "istio.io/api/networking/v1alpha3"
)

// normalizeVirtualService resolves everything in a VirtualService that is relative to its
// namespace: hosts, gateways ("mesh" when none are given), destinations, mirrors and delegates.
// The result is a copy.
func normalizeVirtualService(in *networking.VirtualService, namespace, clusterDomain string) *networking.VirtualService {
	vs := proto.Clone(in).(*networking.VirtualService)
	for i, h := range vs.Hosts {
		vs.Hosts[i] = ResolveHost(h, namespace, clusterDomain)
	}
	gateways := func(names []string) {
		for i, g := range names {
			names[i] = resolveGateway(g, namespace)
		}
	}
	destination := func(d *networking.Destination) {
		if d != nil {
			d.Host = ResolveHost(d.Host, namespace, clusterDomain)
		}
	}
	gateways(vs.Gateways)
	if len(vs.Gateways) == 0 {
		vs.Gateways = []string{"mesh"}
	}
	for _, r := range vs.Http {
		for _, m := range r.Match {
			gateways(m.Gateways)
		}
		for _, d := range r.Route {
			destination(d.Destination)
		}
		destination(r.Mirror)
		for _, m := range r.Mirrors {
			destination(m.Destination)
		}
		if r.Delegate != nil && r.Delegate.Namespace == "" {
			r.Delegate.Namespace = namespace
		}
	}
	for _, r := range vs.Tcp {
		for _, m := range r.Match {
			gateways(m.Gateways)
		}
		for _, d := range r.Route {
			destination(d.Destination)
		}
	}
	for _, r := range vs.Tls {
		for _, m := range r.Match {
			gateways(m.Gateways)
		}
		for _, d := range r.Route {
			destination(d.Destination)
		}
	}
	return vs
}

// virtualServiceIndex is shared by all snapshots between which no VirtualService changed.
type virtualServiceIndex struct {
	exportTo  []string // MeshConfig.defaultVirtualServiceExportTo
	byGateway map[string]*gatewayVirtualServices
	merged    map[string]*VirtualService // those with delegates, by "namespace/name"
	views     sync.Map                   // viewKey -> *virtualServiceView
}

type gatewayVirtualServices struct {
	list    []*VirtualService // in order of precedence
	uniform bool              // every namespace sees all of them
}

type viewKey struct{ client, gateway string }

// virtualServiceView is what the clients of one namespace have in one gateway.
type virtualServiceView struct {
	list     []*VirtualService
	exact    map[string][]*VirtualService
	wildcard []hostVirtualServices // most specific first
}

type hostVirtualServices struct {
	host string
	list []*VirtualService
}

func newVirtualServiceIndex(all *table[VirtualService], exportTo []string, prev *virtualServiceIndex) *virtualServiceIndex {
	x := &virtualServiceIndex{exportTo: exportTo, byGateway: map[string]*gatewayVirtualServices{}}
	sorted := slices.Clone(all.values())
	slices.SortFunc(sorted, func(a, b *VirtualService) int { return byPrecedence(&a.Meta, &b.Meta) })
	var lent map[string]*VirtualService
	if prev != nil {
		lent = prev.merged
	}
	sorted, x.merged = withDelegates(sorted, all, exportTo, lent)
	for _, vs := range sorted {
		for i, g := range vs.Spec.Gateways {
			if slices.Contains(vs.Spec.Gateways[:i], g) {
				continue
			}
			gw := x.byGateway[g]
			if gw == nil {
				gw = &gatewayVirtualServices{uniform: true}
				x.byGateway[g] = gw
			}
			gw.list = append(gw.list, vs)
			gw.uniform = gw.uniform && public(vs.Spec.ExportTo, exportTo)
		}
	}
	if prev != nil { // keep the views that come out the same, so that their slices stay the same too
		prev.views.Range(func(k, v any) bool {
			key, old := k.(viewKey), v.(*virtualServiceView)
			if slices.Equal(x.filter(key), old.list) {
				x.views.Store(key, old)
			}
			return true
		})
	}
	return x
}

// filter lists what key.client sees in key.gateway. An empty client stands for all of them.
func (x *virtualServiceIndex) filter(key viewKey) []*VirtualService {
	gw := x.byGateway[key.gateway]
	if gw == nil {
		return nil
	}
	if gw.uniform {
		return gw.list
	}
	var out []*VirtualService
	for _, vs := range gw.list {
		if visible(vs.Spec.ExportTo, x.exportTo, vs.Namespace, key.client) {
			out = append(out, vs)
		}
	}
	return out
}

func (x *virtualServiceIndex) view(client, gateway string) *virtualServiceView {
	gw := x.byGateway[gateway]
	if gw == nil {
		return &virtualServiceView{}
	}
	key := viewKey{client, gateway}
	if gw.uniform {
		key.client = ""
	}
	if v, ok := x.views.Load(key); ok {
		return v.(*virtualServiceView)
	}
	view := &virtualServiceView{list: x.filter(key), exact: map[string][]*VirtualService{}}
	for _, vs := range view.list {
		for i, h := range vs.Spec.Hosts {
			if !slices.Contains(vs.Spec.Hosts[:i], h) {
				view.exact[h] = append(view.exact[h], vs)
			}
		}
	}
	for h, list := range view.exact {
		if strings.HasPrefix(h, "*") {
			view.wildcard = append(view.wildcard, hostVirtualServices{h, list})
		}
	}
	sort.Slice(view.wildcard, func(i, j int) bool { return CompareHosts(view.wildcard[i].host, view.wildcard[j].host) < 0 })
	v, _ := x.views.LoadOrStore(key, view)
	return v.(*virtualServiceView)
}

// forHost returns the VirtualServices of the most specific host that covers host.
func (v *virtualServiceView) forHost(host string) []*VirtualService {
	if list := v.exact[host]; list != nil {
		return list
	}
	for _, w := range v.wildcard {
		if HostMatches(w.host, host) {
			return w.list
		}
	}
	return nil
}
