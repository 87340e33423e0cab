package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/weft-mesh/weft/envoy"
)

// A pretender is a client that speaks to weftd as Envoy does, and remembers what it was told. Like Envoy it asks for the endpoints of its
// clusters, the routes of its listeners and, once a stream and for all of its routes together, virtual hosts, and for those that its app names; and it neither confirms nor asks for clusters while one of
// them waits for endpoints. It is slow now and then, and its connection breaks now and then.
type pretender struct {
	t         testing.TB
	namespace string
	pod       string
	address   string
	rand      *rand.Rand

	mu    sync.Mutex
	has   [envoy.NumTypes]map[string]*discovery.Resource
	wants [envoy.NumTypes]map[string]bool // subscriptions by name: endpoints, routes, and virtual hosts that the app has named
	cold  map[string]bool                 // clusters that wait for their endpoints
	vhds  bool                            // a table of routes has wanted virtual hosts
	waits map[string]bool                 // virtual hosts that the app waits for
	empty map[string]string               // versions of answers without content
	now   *conversation                   // nil between two streams
	log   []string                        // the last messages, to be shown when something is wrong
}

func newPretender(t testing.TB, namespace, pod, address string, seed uint64) *pretender {
	p := &pretender{t: t, namespace: namespace, pod: pod, address: address, rand: rand.New(rand.NewPCG(seed, 3)), cold: map[string]bool{}, waits: map[string]bool{}, empty: map[string]string{}}
	for i := range p.has {
		p.has[i], p.wants[i] = map[string]*discovery.Resource{}, map[string]bool{}
	}
	return p
}

// run connects again and again until ctx ends.
func (p *pretender) run(ctx context.Context) {
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:15010", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Error(err)
		return
	}
	defer conn.Close()
	for ctx.Err() == nil {
		p.stream(ctx, discovery.NewAggregatedDiscoveryServiceClient(conn))
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond): // as a back-off
		}
	}
}

// stream lives through one stream. Whatever ends it, Envoy connects again.
func (p *pretender) stream(ctx context.Context, client discovery.AggregatedDiscoveryServiceClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		return
	}
	incoming := make(chan *discovery.DeltaDiscoveryResponse)
	go func() {
		defer close(incoming)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case incoming <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	c := &conversation{pretender: p, send: s.Send, asked: map[envoy.Type]bool{}}
	p.mu.Lock()
	p.note("connects")
	p.now = c
	c.open()
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.now = nil
		p.mu.Unlock()
	}()
	for r := range incoming {
		switch p.rand.IntN(60) {
		case 0:
			return // the connection breaks before the answer is looked at
		case 1, 2, 3:
			time.Sleep(time.Duration(p.rand.IntN(30)) * time.Millisecond) // a slow proxy is the subject, this waits for nothing
		}
		p.mu.Lock()
		c.answer(r)
		p.mu.Unlock()
		if p.rand.IntN(60) == 0 {
			return // or after it
		}
	}
}

func (p *pretender) note(format string, args ...any) {
	p.log = append(p.log[max(0, len(p.log)-40):], fmt.Sprintf(format, args...))
}

// conversation is the state of one stream. Errors of sending show as the end of the stream.
type conversation struct {
	*pretender
	send  func(*discovery.DeltaDiscoveryRequest) error
	said  bool
	asked map[envoy.Type]bool
	held  []*discovery.DeltaDiscoveryRequest // for clusters: kept back while one waits for endpoints
}

func (c *conversation) request(t envoy.Type, r *discovery.DeltaDiscoveryRequest) {
	r.TypeUrl = t.TypeURL()
	if !c.said {
		c.said = true
		metadata, _ := structpb.NewStruct(map[string]any{"INSTANCE_IPS": c.address})
		r.Node = &core.Node{Id: "sidecar~" + c.address + "~" + c.pod + "." + c.namespace + "~" + c.namespace + ".svc.cluster.local", Metadata: metadata}
	}
	if !c.asked[t] {
		c.asked[t] = true
		r.InitialResourceVersions = map[string]string{}
		for name, res := range c.has[t] {
			r.InitialResourceVersions[name] = res.Version
		}
		if t == envoy.VirtualHost {
			maps.Copy(r.InitialResourceVersions, c.empty)
		}
	}
	c.note("says %s nonce %q, subscribes %q, unsubscribes %q, has %v", t.TypeURL(), r.ResponseNonce, r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe, slices.Sorted(maps.Keys(r.InitialResourceVersions)))
	_ = c.send(r)
}

// open asks for everything, in Envoy's order.
func (c *conversation) open() {
	if len(c.cold) == 0 {
		c.request(envoy.Cluster, &discovery.DeltaDiscoveryRequest{})
	} else {
		c.held = append(c.held, &discovery.DeltaDiscoveryRequest{})
	}
	c.again(envoy.Endpoints)
	c.request(envoy.Listener, &discovery.DeltaDiscoveryRequest{})
	c.again(envoy.Route)
	if c.vhds {
		c.askForHosts()
	}
}

// askForHosts asks for all virtual hosts that there are, and for those that the app has named in its life.
func (c *conversation) askForHosts() {
	names := slices.Sorted(maps.Keys(c.wants[envoy.VirtualHost]))
	if len(names) > 0 {
		names = append([]string{"*"}, names...)
	}
	c.request(envoy.VirtualHost, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
}

// ask is what happens when the app names a host; only the first time, and only when there is a table for it.
func (p *pretender) ask(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.vhds || p.wants[envoy.VirtualHost][name] || p.has[envoy.VirtualHost][name] != nil {
		return
	}
	p.wants[envoy.VirtualHost][name], p.waits[name] = true, true
	if p.now != nil {
		p.now.request(envoy.VirtualHost, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{name}})
	}
}

// again subscribes on a new stream to what was subscribed to on the last.
func (c *conversation) again(t envoy.Type) {
	if len(c.wants[t]) > 0 {
		c.request(t, &discovery.DeltaDiscoveryRequest{ResourceNamesSubscribe: slices.Sorted(maps.Keys(c.wants[t]))})
	}
}

func (c *conversation) answer(r *discovery.DeltaDiscoveryResponse) {
	t, ok := envoy.TypeOf(r.TypeUrl)
	if !ok {
		c.t.Errorf("%s: a response of type %s", c.pod, r.TypeUrl)
		return
	}
	names := []string{}
	for _, res := range r.Resources {
		names = append(names, res.Name)
	}
	c.note("is told %s nonce %q: %q, without %q", t.TypeURL(), r.Nonce, names, r.RemovedResources)
	byName := t == envoy.Endpoints || t == envoy.Route
	seen := map[string]bool{}
	for _, res := range r.Resources {
		if seen[res.Name] {
			c.t.Errorf("%s: %s is twice in one response", c.pod, res.Name)
		}
		seen[res.Name] = true
		if byName && !c.wants[t][res.Name] {
			continue
		}
		for _, name := range append(res.Aliases, res.Name) {
			delete(c.waits, name)
		}
		delete(c.empty, res.Name)
		if res.Resource == nil {
			c.empty[res.Name] = res.Version
			continue
		}
		c.has[t][res.Name] = res
		switch t {
		case envoy.Cluster:
			delete(c.cold, res.Name)
			if fetchesEndpoints(c.t, res) {
				c.cold[res.Name] = true
			}
		case envoy.Endpoints:
			delete(c.cold, res.Name)
		}
	}
	for _, name := range r.RemovedResources {
		delete(c.has[t], name)
		if t == envoy.Cluster || t == envoy.Endpoints { // none at all is an answer too
			delete(c.cold, name)
		}
	}
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: r.TypeUrl, ResponseNonce: r.Nonce}
	follow := func() {
		switch t {
		case envoy.Cluster:
			c.subscribe(envoy.Endpoints, endpointsOf(c.t, c.has[envoy.Cluster]))
		case envoy.Listener:
			c.subscribe(envoy.Route, routesOf(c.t, c.has[envoy.Listener]))
		case envoy.Route:
			c.vhds = c.vhds || wantVirtualHosts(c.t, c.has[envoy.Route])
			if c.vhds && !c.asked[envoy.VirtualHost] {
				c.askForHosts()
			}
		}
	}
	if t == envoy.Cluster && len(c.cold) > 0 {
		c.held = append(c.held, ack)
		follow()
		return
	}
	if c.rand.IntN(2) == 0 {
		c.request(t, ack)
		follow()
	} else {
		follow()
		c.request(t, ack)
	}
	if len(c.cold) == 0 {
		for _, r := range c.held {
			c.request(envoy.Cluster, r)
		}
		c.held = nil
	}
}

// subscribe makes the subscriptions of a type those of want, and forgets what is not wanted any more.
func (c *conversation) subscribe(t envoy.Type, want map[string]bool) {
	r := &discovery.DeltaDiscoveryRequest{}
	for name := range want {
		if !c.wants[t][name] {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, name)
		}
	}
	for name := range c.wants[t] {
		if !want[name] {
			r.ResourceNamesUnsubscribe = append(r.ResourceNamesUnsubscribe, name)
			delete(c.has[t], name)
		}
	}
	c.wants[t] = want
	if len(r.ResourceNamesSubscribe)+len(r.ResourceNamesUnsubscribe) == 0 {
		return
	}
	if !c.asked[t] && len(want) > 0 { // the first request names all of them
		r.ResourceNamesSubscribe, r.ResourceNamesUnsubscribe = slices.Sorted(maps.Keys(want)), nil
	}
	c.request(t, r)
}

func fetchesEndpoints(t testing.TB, r *discovery.Resource) bool {
	var c cluster.Cluster
	if err := r.Resource.UnmarshalTo(&c); err != nil {
		t.Error(err)
	}
	return c.GetType() == cluster.Cluster_EDS
}

func endpointsOf(t testing.TB, clusters map[string]*discovery.Resource) map[string]bool {
	out := map[string]bool{}
	for name, r := range clusters {
		if fetchesEndpoints(t, r) {
			out[name] = true
		}
	}
	return out
}

// routesOf are the route tables that listeners fetch.
func routesOf(t testing.TB, listeners map[string]*discovery.Resource) map[string]bool {
	out := map[string]bool{}
	for _, r := range listeners {
		var l listener.Listener
		if err := r.Resource.UnmarshalTo(&l); err != nil {
			t.Error(err)
		}
		for _, chain := range append(l.FilterChains, l.DefaultFilterChain) {
			for _, f := range chain.GetFilters() {
				var m hcm.HttpConnectionManager
				if f.GetTypedConfig().MessageIs(&m) && f.GetTypedConfig().UnmarshalTo(&m) == nil && m.GetRds() != nil {
					out[m.GetRds().RouteConfigName] = true
				}
			}
		}
	}
	return out
}

// wantVirtualHosts reports whether one of the tables gets its virtual hosts separately.
func wantVirtualHosts(t testing.TB, routes map[string]*discovery.Resource) bool {
	for _, r := range routes {
		var table route.RouteConfiguration
		if err := r.Resource.UnmarshalTo(&table); err != nil {
			t.Error(err)
		}
		if table.GetVhds() != nil {
			return true
		}
	}
	return false
}

// lacks says how what the client has differs from what it should have; empty when it does not.
func (p *pretender) lacks(sets []*envoy.Set) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var wrong []string
	for t := range envoy.NumTypes {
		if t == envoy.Secret {
			continue
		}
		want := map[string]*envoy.Resource{}
		for _, s := range sets {
			for _, r := range s.Resources[t] {
				if t != envoy.Endpoints && t != envoy.Route || p.wants[t][r.Name] {
					want[r.Name] = r
				}
			}
		}
		for name, r := range want {
			switch got := p.has[t][name]; {
			case got == nil:
				wrong = append(wrong, fmt.Sprintf("%s %s is missing", t.TypeURL(), name))
			case string(got.Resource.Value) != string(r.Body):
				wrong = append(wrong, fmt.Sprintf("%s %s is old:\n got %v\nwant %v", t.TypeURL(), name, got.Resource, decoded(r)))
			}
		}
		for name := range p.has[t] {
			if want[name] == nil {
				wrong = append(wrong, fmt.Sprintf("%s %s is left over", t.TypeURL(), name))
			}
		}
	}
	for name := range p.cold {
		wrong = append(wrong, "cluster "+name+" waits for its endpoints")
	}
	for name := range p.waits {
		wrong = append(wrong, "the app waits for "+name)
	}
	if len(wrong) == 0 {
		return ""
	}
	slices.Sort(wrong)
	return strings.Join(wrong, "\n") + "\nThe conversation:\n" + strings.Join(p.log, "\n")
}

func decoded(r *envoy.Resource) proto.Message {
	m, err := (&anypb.Any{TypeUrl: r.Type.TypeURL(), Value: r.Body}).UnmarshalNew()
	if err != nil {
		return nil
	}
	return m
}
