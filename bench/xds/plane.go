package main

import (
	"encoding/json"
	"fmt"
	"os"

	security "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

// A plane is a mesh in memory and what it means to proxies.
type plane struct {
	size
	store    *mesh.Store
	snapshot *mesh.Snapshot
	world    *envoy.World
	steps    int
	toggled  map[string]int // how often, by kind of change, of those that go back and forth
}

func newPlane(s size) (*plane, error) {
	p := &plane{size: s, store: mesh.NewStore(mesh.Options{}), toggled: map[string]int{}}
	return p, p.apply(s.objects()...)
}

func (p *plane) apply(list ...runtime.Object) error {
	objects := make([]mesh.Object, len(list))
	for i, o := range list {
		objects[i] = mesh.Object{Object: o}
	}
	return p.store.Apply(objects...)
}

// derive does what weftd does when the debounce is over.
func (p *plane) derive() {
	p.snapshot = p.store.Snapshot()
	p.world = envoy.NewWorld(p.snapshot, p.world)
}

// proxy is a client as the engine knows it. inline: its route tables carry their virtual hosts.
func (p *plane) proxy(i int, inline bool) envoy.Proxy {
	name, namespace := fmt.Sprintf("client-%d", i), p.namespace(i)
	out := envoy.Proxy{Kind: envoy.Sidecar, Namespace: namespace, Pod: name, ServiceAccount: p.account(i), Workload: p.snapshot.Workload(namespace, name),
		Inline: inline}
	if p.OnDemand {
		out.Demand = &envoy.Demand{Workload: namespace + "/" + p.account(i)}
	}
	return out
}

// change makes another change of a kind each time.
func (p *plane) change(kind string) error {
	p.steps++
	p.toggled[kind]++
	switch kind {
	case "endpoint":
		return p.apply(p.slice(changed, p.Endpoints, p.toggled[kind]%2))
	case "virtualservice":
		return p.apply(p.virtualService(changed, p.steps))
	case "elsewhere":
		return p.apply(p.virtualService(unused, p.steps))
	case "destinationrule":
		return p.apply(p.destinationRule(changed, p.steps))
	case "peerauthentication":
		mode := security.PeerAuthentication_MutualTLS_STRICT
		if p.toggled[kind]%2 == 0 {
			mode = security.PeerAuthentication_MutualTLS_PERMISSIVE
		}
		return p.apply(peerAuthentication(mode))
	}
	return fmt.Errorf("unknown change %q", kind)
}

// setup is what proxies need to connect.
type setup struct {
	Size       size
	Secure     bool // TLS and a token
	Address    string
	Ready      string // where the server says whether it is ready
	Root       []byte
	Tokens     []string
	Namespaces []asked
	Separate   bool // virtual hosts come on their own
	Bytes      int  // floor: what each connection gets
}

// asked is what the proxies of a namespace name when they ask, everything being loaded.
type asked struct{ Endpoints, Routes []string }

func (s *setup) write(path string) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func readSetup(path string) (*setup, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s := &setup{}
	return s, json.Unmarshal(data, s)
}

func (p *plane) setup(inline bool) *setup {
	s := &setup{Size: p.size}
	for n := range p.Namespaces {
		var a asked
		for _, set := range p.world.Sets(p.proxy(n, inline)) {
			for _, r := range set.Resources[envoy.Endpoints] {
				a.Endpoints = append(a.Endpoints, r.Name)
			}
			for _, r := range set.Resources[envoy.Route] {
				a.Routes = append(a.Routes, r.Name)
				s.Separate = s.Separate || r.VHDS
			}
		}
		s.Namespaces = append(s.Namespaces, a)
	}
	return s
}
