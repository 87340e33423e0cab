package envoy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	networking "istio.io/api/networking/v1alpha3"

	"github.com/weft-mesh/weft/mesh"
)

// A routeSite is where routes of a VirtualService will be used.
type routeSite struct {
	gateway string // "mesh", or the "namespace/name" of a Gateway
	port    uint16 // that clients dial
	secure  bool   // clients use TLS
	used    func(*mesh.Service)
}

// httpRoutes translates spec.http for one site. What cannot be translated is left out, together with its whole entry: half a match would
// catch requests that the user kept away from it.
func (v *view) httpRoutes(vs *mesh.VirtualService, at routeSite) []*route.Route {
	var out []*route.Route
	for i, h := range vs.Spec.GetHttp() {
		b := routeBuilder{view: v, vs: vs, at: at, field: "spec.http[" + strconv.Itoa(i) + "]"}
		routes, last := b.entry(h)
		out = append(out, routes...)
		if last {
			break // the rest can never match
		}
	}
	return out
}

// A routeBuilder translates one entry of spec.http.
type routeBuilder struct {
	*view
	vs    *mesh.VirtualService
	at    routeSite
	field string
	bad   bool // something in the entry could not be translated
}

// problem leaves the entry out.
func (b *routeBuilder) wrong(field, message string) {
	b.bad = true
	b.problem(b.vs.Ref, b.field+field, message)
}

// entry gives one route for each match, and says whether the last one takes every request.
func (b *routeBuilder) entry(h *networking.HTTPRoute) (routes []*route.Route, last bool) {
	matches := h.GetMatch()
	if len(matches) == 0 {
		matches = []*networking.HTTPMatchRequest{nil}
	}
	matches = slices.DeleteFunc(slices.Clone(matches), func(m *networking.HTTPMatchRequest) bool { return !b.applies(m) })
	if len(matches) == 0 {
		return nil, false
	}
	base := b.base(h)
	for i, m := range matches {
		r := proto.CloneOf(base)
		r.Match = b.match(m, ".match["+strconv.Itoa(i)+"]")
		if m.GetName() != "" {
			r.Name = h.GetName() + "." + m.GetName()
		}
		if m.GetStatPrefix() != "" {
			r.StatPrefix = m.GetStatPrefix()
		}
		r.Decorator = &route.Decorator{Operation: b.operation(r)}
		if err := r.Validate(); err != nil && !b.bad {
			b.wrong("", fmt.Sprintf("Envoy would refuse it: %v. Until it is corrected the entry is left out", err))
		}
		routes = append(routes, r)
		if last = takesAll(r.Match); last {
			break
		}
	}
	if b.bad {
		return nil, false
	}
	return routes, last
}

// applies reports whether the match can be true at this site, for this client.
func (b *routeBuilder) applies(m *networking.HTTPMatchRequest) bool {
	if m == nil {
		return true
	}
	if p := m.GetPort(); p != 0 && p != uint32(b.at.port) {
		return false
	}
	if g := m.GetGateways(); len(g) > 0 && !slices.Contains(g, b.at.gateway) {
		return false
	}
	if b.at.gateway != "mesh" {
		return true // gateways have no source workload
	}
	return b.cameFrom(m.GetSourceNamespace(), m.GetSourceLabels())
}

// base is everything of a route but its match.
func (b *routeBuilder) base(h *networking.HTTPRoute) *route.Route {
	r := &route.Route{Name: h.GetName(), Metadata: configMetadata("virtual-service", b.vs.Meta)}
	b.headers(h.GetHeaders(), ".headers", headerTarget{
		&r.RequestHeadersToAdd, &r.RequestHeadersToRemove, &r.ResponseHeadersToAdd, &r.ResponseHeadersToRemove,
	})
	switch {
	case h.GetRedirect() != nil:
		r.Action = &route.Route_Redirect{Redirect: b.redirect(h.GetRedirect())}
	case h.GetDirectResponse() != nil:
		r.Action = &route.Route_DirectResponse{DirectResponse: directResponse(h.GetDirectResponse())}
	case len(h.GetRoute()) > 0:
		a := b.forward(h, r)
		r.Action = &route.Route_Route{Route: a}
	case h.GetDelegate() != nil:
		b.wrong(".delegate", fmt.Sprintf("VirtualService %s/%s does not exist or has hosts of its own; create it without hosts and gateways",
			h.GetDelegate().GetNamespace(), h.GetDelegate().GetName()))
	default:
		b.wrong("", "needs one of route, redirect, directResponse and delegate")
	}
	if f := b.fault(h.GetFault()); f != nil {
		perFilter(r, faultName, f)
	}
	if h.GetCorsPolicy() != nil {
		perFilter(r, corsName, b.cors(h.GetCorsPolicy()))
	}
	return r
}

func perFilter(r *route.Route, name string, config proto.Message) {
	if r.TypedPerFilterConfig == nil {
		r.TypedPerFilterConfig = map[string]*anypb.Any{}
	}
	r.TypedPerFilterConfig[name] = anyOf(config)
}

// configMetadata names the object behind a route or cluster, as Istio writes it, for people who read a config dump.
func configMetadata(kind string, m mesh.Meta) *core.Metadata {
	return &core.Metadata{FilterMetadata: map[string]*structpb.Struct{"istio": {Fields: map[string]*structpb.Value{
		"config": structpb.NewStringValue("/apis/networking.istio.io/v1/namespaces/" + m.Namespace + "/" + kind + "/" + m.Name),
	}}}}
}

// forward sends requests to the destinations of an entry.
func (b *routeBuilder) forward(h *networking.HTTPRoute, r *route.Route) *route.RouteAction {
	a := routeAction()
	if t := h.GetTimeout(); t != nil {
		a.Timeout = t
	}
	targets := b.targets(h.GetRoute())
	if len(targets) == 0 {
		return a
	}
	hashed := false
	for _, t := range targets {
		if p := hashPolicies(t.policy); p != nil {
			hashed = true
			a.HashPolicy = append(a.HashPolicy, p...)
		}
	}
	a.HashPolicy = compactHash(a.HashPolicy)
	if retries := h.GetRetries(); retries != nil {
		a.RetryPolicy = b.retryPolicy(retries, hashed)
	} else {
		a.RetryPolicy = b.retryPolicy(b.mesh().GetDefaultHttpRetryPolicy(), hashed)
	}
	if len(targets) == 1 {
		a.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: targets[0].cluster}
		authority := b.headers(targets[0].headers, targets[0].field+".headers", headerTarget{
			&r.RequestHeadersToAdd, &r.RequestHeadersToRemove, &r.ResponseHeadersToAdd, &r.ResponseHeadersToRemove,
		})
		if authority != "" {
			a.HostRewriteSpecifier = &route.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
		}
	} else {
		split := &route.WeightedCluster{}
		for _, t := range targets {
			w := &route.WeightedCluster_ClusterWeight{Name: t.cluster, Weight: u32(t.weight)}
			authority := b.headers(t.headers, t.field+".headers", headerTarget{
				&w.RequestHeadersToAdd, &w.RequestHeadersToRemove, &w.ResponseHeadersToAdd, &w.ResponseHeadersToRemove,
			})
			if authority != "" {
				w.HostRewriteSpecifier = &route.WeightedCluster_ClusterWeight_HostRewriteLiteral{HostRewriteLiteral: authority}
			}
			split.Clusters = append(split.Clusters, w)
		}
		a.ClusterSpecifier = &route.RouteAction_WeightedClusters{WeightedClusters: split}
	}
	if s := h.GetHeaders().GetRequest().GetSet(); s != nil {
		if authority := authorityOf(s); authority != "" {
			a.HostRewriteSpecifier = &route.RouteAction_HostRewriteLiteral{HostRewriteLiteral: authority}
		}
	}
	b.rewrite(a, h.GetRewrite())
	b.mirrors(a, h)
	return a
}

// routeAction has Istio's default of no timeout. max_stream_duration stays unset: with it, even with zeros in it, Envoy ignores
// the timeout (Envoy: RouteEntry::usingNewTimeouts).
//
// Nor is a quiet stream ended: what the connection manager says of those is for requests that wait for their route, see holdAtMost.
func routeAction() *route.RouteAction {
	return &route.RouteAction{Timeout: durationpb.New(0), IdleTimeout: durationpb.New(0)}
}

// A target is one destination of a route.
type target struct {
	cluster string
	weight  uint32
	headers *networking.Headers
	policy  policy
	field   string
}

// targets leaves out those of weight zero, unless it is the only one or all are.
func (b *routeBuilder) targets(ds []*networking.HTTPRouteDestination) []target {
	var out []target
	weights := uint32(0)
	for _, d := range ds {
		weights += uint32(max(d.GetWeight(), 0))
	}
	for i, d := range ds {
		field := ".route[" + strconv.Itoa(i) + "]"
		t := target{weight: uint32(max(d.GetWeight(), 0)), headers: d.GetHeaders(), field: field}
		if weights == 0 {
			t.weight = 1
		}
		if t.weight == 0 {
			continue
		}
		t.cluster, t.policy = b.destination(b.vs.Ref, b.field+field+".destination", d.GetDestination(), b.at)
		out = append(out, t)
	}
	return out
}

// destination is the cluster that a Destination means. A missing host, port or subset still gives a name: the cluster
// does not exist, and requests get 503, as with Istio; the problem is recorded.
func (v *view) destination(ref mesh.Ref, field string, d *networking.Destination, at routeSite) (name string, p policy) {
	host := d.GetHost()
	port := at.port
	if n := d.GetPort().GetNumber(); n > 0 {
		port = uint16(n)
	}
	svc := v.service(host)
	if svc == nil && strings.Contains(host, ".") {
		// "reviews.prod" and "reviews.prod.svc" are not names that Istio completes; they cannot mean anything else.
		for _, rest := range []string{".svc." + v.snap.ClusterDomain(), "." + v.snap.ClusterDomain()} {
			if svc = v.service(host + rest); svc != nil {
				break
			}
		}
	}
	if svc == nil {
		v.problem(ref, field+".host", fmt.Sprintf("host %q is no Service that those who send there can see; requests get 503. Correct the name, or create the Service", host))
		return clusterName(port, d.GetSubset(), host), policy{}
	}
	svc = v.alias(svc)
	if at.used != nil {
		at.used(svc)
	}
	if d.GetPort().GetNumber() == 0 && len(svc.Ports) == 1 {
		port = svc.Ports[0].Number
	}
	if _, ok := svc.Port(port); !ok {
		v.problem(ref, field+".port", fmt.Sprintf("%s has no port %d; requests get 503. Set port.number to one of %s",
			svc.Ref, port, portList(svc)))
	}
	rule := v.rule(svc)
	var subset *networking.Subset
	if s := d.GetSubset(); s != "" {
		if subset = subsetOf(rule, s); subset == nil {
			v.problem(ref, field+".subset", fmt.Sprintf("no DestinationRule defines subset %q of host %s; requests get 503. Add it to a DestinationRule's subsets",
				s, svc.Host))
		}
	}
	return clusterName(port, d.GetSubset(), svc.Host), policyFor(ruleSpec(rule), subset, port)
}

func portList(svc *mesh.Service) string {
	var ports []string
	for _, p := range svc.Ports {
		ports = append(ports, strconv.Itoa(int(p.Number)))
	}
	return strings.Join(ports, ", ")
}

// operation names spans: "reviews.default.svc.cluster.local:9080/*", or the VirtualService's name where there are several destinations.
func (b *routeBuilder) operation(r *route.Route) string {
	path := "/*"
	switch p := r.Match.GetPathSpecifier().(type) {
	case *route.RouteMatch_Prefix:
		path = p.Prefix + "*"
	case *route.RouteMatch_Path:
		path = p.Path
	case *route.RouteMatch_SafeRegex:
		path = p.SafeRegex.GetRegex()
	}
	if c := strings.Split(r.GetRoute().GetCluster(), "|"); len(c) == 4 {
		return c[3] + ":" + c[1] + path
	}
	return b.vs.Name + ":" + strconv.Itoa(int(b.at.port)) + path
}

// defaultRoute sends everything to one cluster, as when no VirtualService says otherwise. There is one for each port of the mesh, in each
// sidecar that has everything: what can be left out is. (A decorator, for one, which only names spans.)
func (v *view) defaultRoute(name, cluster string, p policy) *route.Route {
	a := routeAction()
	a.ClusterSpecifier = &route.RouteAction_Cluster{Cluster: cluster}
	a.HashPolicy = hashPolicies(p)
	b := routeBuilder{view: v}
	a.RetryPolicy = b.retryPolicy(v.mesh().GetDefaultHttpRetryPolicy(), a.HashPolicy != nil)
	return &route.Route{
		Name:   name,
		Match:  matchAll(),
		Action: &route.Route_Route{Route: a},
	}
}

// l4Clusters translates the destinations of a tcp or tls route.
func (v *view) l4Clusters(ref mesh.Ref, field string, ds []*networking.RouteDestination, at routeSite) []weightedName {
	total := int32(0)
	for _, d := range ds {
		total += max(d.GetWeight(), 0)
	}
	var out []weightedName
	for i, d := range ds {
		w := uint32(max(d.GetWeight(), 0))
		if total == 0 {
			w = 1
		}
		if w == 0 {
			continue
		}
		name, _ := v.destination(ref, field+".route["+strconv.Itoa(i)+"].destination", d.GetDestination(), at)
		out = append(out, weightedName{name, w})
	}
	return out
}
