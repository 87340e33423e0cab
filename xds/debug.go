package xds

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/weft-mesh/weft/envoy"
)

// page is one debug page.
type page struct {
	path, what string
	serve      http.HandlerFunc
}

func (s *Server) pages() []page {
	return []page{
		{"/debug/syncz", "what each proxy was sent and has confirmed, as istioctl proxy-status reads it", s.syncz},
		{"/debug/adsz", "connected proxies: identity, address, subscriptions", s.adsz},
		{"/debug/config_dump", "what a proxy should have, in the form of Envoy's admin page: ?proxyID=POD.NAMESPACE[&types=cds,eds,lds,rds,sds][&name=RESOURCE]", s.configDump},
		{"/debug/demandz", "what each workload has asked for, where proxies are told what is asked for: [?workload=NAMESPACE/SERVICEACCOUNT]", s.demandz},
		{"/debug/rejectz", "configuration that proxies rejected, with the objects that caused it", s.rejectz},
	}
}

// Debug serves the debug pages, and an index of them at /debug/. They show
// configuration, but no secrets; who may read them is Guard's business.
func (s *Server) Debug() http.Handler {
	mux := http.NewServeMux()
	pages := s.pages()
	for _, p := range pages {
		mux.HandleFunc("GET "+p.path, p.serve)
	}
	mux.HandleFunc("GET /debug/{$}", func(w http.ResponseWriter, _ *http.Request) {
		for _, p := range pages {
			fmt.Fprintf(w, "%-20s %s\n", p.path, p.what)
		}
	})
	return mux
}

// Guard lets a request through that comes from this machine's loopback (which
// includes kubectl port-forward) or carries the token of a pod in namespace; others may not
// read other people's configuration.
func (s *Server) Guard(h http.Handler, namespace string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && ap.Addr().Unmap().IsLoopback() {
			h.ServeHTTP(w, r)
			return
		}
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || s.config.Verifier == nil {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "this page is for this pod's loopback (kubectl port-forward), or for a service account token of namespace "+namespace, http.StatusUnauthorized)
			return
		}
		caller, err := s.config.Verifier.Verify(r.Context(), token)
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusUnauthorized)
		case caller.Namespace != namespace:
			http.Error(w, "this page is for pods of namespace "+namespace+" only", http.StatusForbidden)
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// syncStatus has the fields of Istio's /debug/syncz.
type syncStatus struct {
	Cluster       string            `json:"cluster_id,omitempty"`
	Proxy         string            `json:"proxy"`
	Type          envoy.Kind        `json:"proxy_type"`
	Version       string            `json:"proxy_version,omitempty"`
	ClusterSent   string            `json:"cluster_sent,omitempty"`
	ClusterAcked  string            `json:"cluster_acked,omitempty"`
	ListenerSent  string            `json:"listener_sent,omitempty"`
	ListenerAcked string            `json:"listener_acked,omitempty"`
	RouteSent     string            `json:"route_sent,omitempty"`
	RouteAcked    string            `json:"route_acked,omitempty"`
	HostSent      string            `json:"virtual_host_sent,omitempty"`
	HostAcked     string            `json:"virtual_host_acked,omitempty"`
	EndpointSent  string            `json:"endpoint_sent,omitempty"`
	EndpointAcked string            `json:"endpoint_acked,omitempty"`
	SecretSent    string            `json:"secret_sent,omitempty"`
	SecretAcked   string            `json:"secret_acked,omitempty"`
	OnDemand      bool              `json:"on_demand,omitempty"`
	Rejected      map[string]string `json:"rejected,omitempty"` // "CDS/name" -> Envoy's message
}

func (s *Server) syncz(w http.ResponseWriter, _ *http.Request) {
	list := []syncStatus{}
	for _, ses := range s.connected() {
		ses.mu.Lock()
		st := syncStatus{Cluster: ses.node.metadata["CLUSTER_ID"], Proxy: ses.name(), Type: ses.proxy.Kind, Version: ses.node.version, OnDemand: ses.appetite != nil}
		for t, into := range [envoy.NumTypes][2]*string{
			envoy.Cluster:   {&st.ClusterSent, &st.ClusterAcked},
			envoy.Endpoints: {&st.EndpointSent, &st.EndpointAcked},
			envoy.Listener:  {&st.ListenerSent, &st.ListenerAcked},
			envoy.Route:     {&st.RouteSent, &st.RouteAcked},
			envoy.Secret:    {&st.SecretSent, &st.SecretAcked},

			envoy.VirtualHost: {&st.HostSent, &st.HostAcked},
		} {
			ts := ses.protocol.status(envoy.Type(t))
			*into[0], *into[1] = ts.Sent, ts.Acked
			for name, r := range ts.Refused {
				if st.Rejected == nil {
					st.Rejected = make(map[string]string)
				}
				st.Rejected[shortName(envoy.Type(t))+"/"+name] = r.message
			}
		}
		ses.mu.Unlock()
		list = append(list, st)
	}
	writeJSON(w, list)
}

// connection describes one stream.
type connection struct {
	ID            string              `json:"connectionId"`
	Node          string              `json:"nodeId"`
	Peer          string              `json:"address"`
	Since         time.Time           `json:"connectedAt"`
	Kind          envoy.Kind          `json:"type"`
	Protocol      string              `json:"protocol"`
	Authenticated bool                `json:"authenticated"`
	Identity      string              `json:"identity,omitempty"`
	TokenExpires  *time.Time          `json:"tokenExpires,omitempty"`
	SVIDExpires   *time.Time          `json:"svidExpires,omitempty"`
	UpToDate      bool                `json:"upToDate"`
	Scopes        map[string]uint64   `json:"scopes"` // version of each
	Subscriptions map[string][]string `json:"subscriptions,omitempty"`
	InFlight      []string            `json:"inFlight,omitempty"`
}

func (s *Server) adsz(w http.ResponseWriter, _ *http.Request) {
	list := []connection{}
	for _, ses := range s.connected() {
		list = append(list, ses.describe())
	}
	writeJSON(w, map[string]any{"totalClients": len(list), "clients": list})
}

func (s *session) describe() connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := connection{
		ID: s.connection(), Node: s.node.id, Peer: s.login.peer, Since: s.opened, Kind: s.proxy.Kind, Protocol: "sotw",
		Authenticated: s.login.uid != "", UpToDate: s.changed.IsZero() && s.protocol.waiting().IsZero(),
		Scopes: make(map[string]uint64), Subscriptions: make(map[string][]string),
	}
	if s.delta {
		c.Protocol = "delta"
	}
	if s.login.uid != "" {
		c.Identity = s.login.id.String()
	}
	if !s.login.expires.IsZero() {
		c.TokenExpires = &s.login.expires
	}
	if s.wallet != nil && !s.wallet.version.Expires.IsZero() {
		expires := s.wallet.version.Expires
		c.SVIDExpires = &expires
	}
	for _, set := range s.sets {
		c.Scopes[set.Scope] = set.Version
	}
	for t := range envoy.NumTypes {
		ts := s.protocol.status(t)
		if ts.InFlight {
			c.InFlight = append(c.InFlight, shortName(t))
		}
		switch {
		case ts.Asked && ts.Names == nil:
			c.Subscriptions[shortName(t)] = []string{"*"}
		case ts.Asked:
			c.Subscriptions[shortName(t)] = ts.Names
		}
	}
	return c
}

// hunger is what one workload has asked for.
type hunger struct {
	Workload     string   `json:"workload"` // "namespace/service account"
	Streams      int      `json:"streams"`
	VirtualHosts []string `json:"virtualHosts,omitempty"` // "<port>/<authority>"
	Clusters     []string `json:"clusters,omitempty"`
	Refused      uint64   `json:"refused,omitempty"` // names that got no place
}

func (s *Server) demandz(w http.ResponseWriter, r *http.Request) {
	only := r.URL.Query().Get("workload")
	list := []hunger{}
	for _, h := range s.demands.list() {
		if only == "" || h.Workload == only {
			list = append(list, h)
		}
	}
	writeJSON(w, list)
}

func (s *Server) rejectz(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.rejects.list()) }

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.Encode(v) // the reader may have gone; nothing is left to do then
}
