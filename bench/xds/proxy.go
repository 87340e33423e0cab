package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/weft-mesh/weft/envoy"
)

// A proxy does what Envoy does: it asks for clusters, secrets, endpoints, listeners, routes and virtual hosts, each when the former has come,
// and confirms everything. On demand it asks for the endpoints of clusters as these come, and for the virtual hosts that its
// app calls. When it connects again it tells what it has.
type proxy struct {
	*proxies
	number int
	class  *class
	own    *memory // on demand all that it has; else what the others of its class do not have
	*stream

	state state
	asked envoy.Type
	todo  []envoy.Type    // what is asked for next
	hosts []host          // on demand: that the app calls and that have not come
	heard map[string]bool // on demand: clusters whose endpoints were asked for
	mark  int64
}

type state int

const (
	asking    state = iota // for one type after the other
	calling                // on demand: the app calls its hosts
	returning              // having told what it has
	ready
)

// host is a name that an app calls.
type host struct{ ask, name string }

// memory is what a proxy has: versions by name.
type memory [envoy.NumTypes]map[string]string

// end is the name of endpoints that nobody has. A proxy that connects again may have nothing to hear; the answer to this one tells that
// the server is through with it.
const end = "outbound|0||end"

func (p *proxies) proxy(i int) *proxy {
	x := &proxy{proxies: p, number: i, class: p.classes[i%len(p.classes)], own: &p.memories[i-p.first], heard: map[string]bool{}}
	if p.Size.OnDemand {
		for _, service := range p.Size.uses(i) {
			ask := "80/" + p.Size.host(service)
			x.hosts = append(x.hosts, host{ask, ask + ".svc.cluster.local"})
		}
	}
	for _, t := range []envoy.Type{envoy.Cluster, envoy.Secret, envoy.Endpoints, envoy.Listener, envoy.Route, envoy.VirtualHost} {
		if t == envoy.Secret && !p.Secure || t == envoy.VirtualHost && !p.Separate || t == envoy.Endpoints && p.Size.OnDemand {
			continue
		}
		x.todo = append(x.todo, t)
	}
	return x
}

// connect runs the proxy until its stream ends. again: it was connected before.
func (x *proxy) connect(again bool) error {
	method := discovery.AggregatedDiscoveryService_StreamAggregatedResources_FullMethodName
	if x.delta() {
		method = discovery.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName
	}
	token := ""
	if x.Secure {
		token = x.Tokens[x.number]
	}
	s, err := open(x.Address, method, token, x.roots, &parser{done: x.got})
	if err != nil {
		return err
	}
	defer s.conn.Close()
	x.stream = s
	if !x.opened(s.conn) {
		return nil
	}
	if again {
		x.comeBack()
	} else {
		x.next()
	}
	return s.run()
}

func (x *proxy) delta() bool { return x.Size.Protocol == "delta" }

// next asks for the next type, or calls what the app calls.
func (x *proxy) next() {
	if len(x.todo) == 0 {
		x.state = calling
		for _, h := range x.hosts {
			x.ask(envoy.VirtualHost, appendString(nil, 3, h.ask), nil)
		}
		x.settle()
		return
	}
	first := x.parser.messages == 0
	x.asked, x.todo = x.todo[0], x.todo[1:]
	x.parser.wanted = x.Size.OnDemand || x.asked == envoy.Listener || x.learns()
	if first {
		x.greet(x.asked, nil)
		return
	}
	x.ask(x.asked, x.subscription(x.asked), nil)
}

// learns: one proxy of each class remembers what all of it have.
func (x *proxy) learns() bool { return x.number < len(x.classes) }

// subscription is the names that a proxy asks for at first.
func (x *proxy) subscription(t envoy.Type) []byte {
	switch t {
	case envoy.Secret:
		return appendString(appendString(nil, 3, "ROOTCA"), 3, "default")
	case envoy.Endpoints:
		return x.class.endpoints
	case envoy.Route:
		return x.class.routes
	}
	return nil
}

// comeBack asks for everything at once, saying what is there.
func (x *proxy) comeBack() {
	for i, t := range x.todo {
		names := x.subscription(t)
		if x.Size.OnDemand && t == envoy.VirtualHost {
			names = appendString(nil, 3, "*")
			for _, h := range x.hosts {
				names = appendString(names, 3, h.ask)
			}
		}
		if i == 0 {
			x.greet(t, x.initial(t))
		} else {
			x.ask(t, names, x.initial(t))
		}
	}
	if x.Size.OnDemand {
		var names []byte
		for _, name := range slices.Sorted(maps.Keys(x.own[envoy.Endpoints])) {
			x.heard[name] = true
			names = appendString(names, 3, name)
		}
		x.ask(envoy.Endpoints, names, x.initial(envoy.Endpoints))
	}
	x.parser.wanted = x.Size.OnDemand
	x.todo, x.hosts, x.state = nil, nil, returning
	x.ask(envoy.Endpoints, appendString(nil, 3, end), nil)
}

// initial is initial_resource_versions. Secrets are not kept.
func (x *proxy) initial(t envoy.Type) []byte {
	if x.Size.OnDemand || t == envoy.Listener {
		return encodeVersions(x.own[t])
	}
	if v := x.class.versions[t]; len(v) > 0 {
		return v[x.number%len(v)]
	}
	return nil
}

// greet is the first request, for everything of a type. It names the node.
func (x *proxy) greet(t envoy.Type, initial []byte) {
	node, typeField := protowire.Number(1), protowire.Number(2)
	if !x.delta() {
		node, typeField = 2, 4
	}
	n := x.Size.namespace(x.number)
	id := fmt.Sprintf("sidecar~10.0.0.1~client-%d.%s~%s.svc.cluster.local", x.number, n, n)
	x.say(appendString(nil, node, string(appendString(nil, 1, id))), appendString(nil, typeField, t.TypeURL()), initial)
}

func (x *proxy) ask(t envoy.Type, names, initial []byte) {
	typeField := protowire.Number(2)
	if !x.delta() {
		typeField = 4
	}
	x.say(appendString(nil, typeField, t.TypeURL()), names, initial)
}

// got takes a response and confirms it.
func (x *proxy) got(m *message) error {
	x.count(m.size, x.number-x.first, &x.mark)
	t, ok := envoy.TypeOf(m.typeURL)
	if !ok {
		return fmt.Errorf("a response of the unknown type %q", m.typeURL)
	}
	if x.delta() {
		x.say(appendString(appendString(nil, 2, m.typeURL), 6, m.nonce))
	} else {
		x.say(appendString(nil, 1, m.version), x.subscription(t), appendString(appendString(nil, 4, m.typeURL), 5, m.nonce))
	}
	if x.Size.OnDemand {
		x.follow(t, m)
	}
	switch {
	case x.state == asking && t == x.asked:
		x.remember(t, m)
		if len(x.todo) > 0 || len(x.hosts) > 0 {
			x.next()
		} else {
			x.settle()
		}
	case x.state == calling:
		x.settle()
	case x.state == returning && t == envoy.Endpoints && slices.Contains(m.removed, end):
		x.settle()
	}
	return nil
}

// follow does what comes of a response on demand.
func (x *proxy) follow(t envoy.Type, m *message) {
	x.own.take(t, m)
	switch t {
	case envoy.Cluster:
		var names []byte
		for _, r := range m.resources {
			if strings.HasPrefix(r.name, "outbound|") && !x.heard[r.name] {
				x.heard[r.name] = true
				names = appendString(names, 3, r.name)
			}
		}
		if names != nil {
			x.ask(envoy.Endpoints, names, nil)
		}
	case envoy.VirtualHost:
		x.hosts = slices.DeleteFunc(x.hosts, func(h host) bool {
			return slices.ContainsFunc(m.resources, func(r entry) bool { return r.name == h.name })
		})
	}
}

// remember keeps the answer to a first question, where nobody else does.
func (x *proxy) remember(t envoy.Type, m *message) {
	switch {
	case x.Size.OnDemand || t == envoy.Secret:
	case t == envoy.Listener:
		x.own.take(t, m)
	case x.learns():
		x.class.learned.take(t, m)
	}
}

// settle makes the proxy ready when it has what it needs.
func (x *proxy) settle() {
	if x.state != ready && len(x.hosts) == 0 {
		x.state = ready
		x.parser.wanted = x.Size.OnDemand
		x.ready.Add(1)
	}
}

func (m *memory) take(t envoy.Type, got *message) {
	if m[t] == nil {
		m[t] = map[string]string{}
	}
	for _, r := range got.resources {
		m[t][r.name] = r.version
	}
	for _, name := range got.removed {
		delete(m[t], name)
	}
}

// encodeVersions gives entries of initial_resource_versions, in no order, as Envoy does.
func encodeVersions(have map[string]string) (b []byte) {
	for name, version := range have {
		b = appendString(b, 5, string(appendString(appendString(nil, 1, name), 2, version)))
	}
	return b
}

// appendString appends a length-delimited field.
func appendString(b []byte, number protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, number, protowire.BytesType), s)
}
