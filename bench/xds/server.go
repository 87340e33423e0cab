package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	_ "net/http/pprof"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"time"

	security "istio.io/api/security/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/xds"
)

// A plane is a mesh in memory and what it means to proxies.
type plane struct {
	size
	store    *mesh.Store
	snapshot *mesh.Snapshot
	world    *envoy.World
	steps    int
}

func newPlane(s size) (*plane, error) {
	p := &plane{size: s, store: mesh.NewStore(mesh.Options{})}
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

func (p *plane) proxy(i int) envoy.Proxy {
	name := fmt.Sprintf("client-%d", i)
	return envoy.Proxy{Kind: envoy.Sidecar, Namespace: p.namespace(i), Pod: name, ServiceAccount: "client", Workload: p.snapshot.Workload(p.namespace(i), name)}
}

// Changes that are measured; each call makes another one. The index is that of a service.
const changed = 7

func (p *plane) change(kind string) error {
	p.steps++
	switch kind {
	case "endpoint":
		return p.apply(p.slice(changed, p.Endpoints, p.steps%2))
	case "virtualservice":
		return p.apply(p.virtualService(changed, p.steps))
	case "destinationrule":
		return p.apply(p.destinationRule(changed, p.steps))
	case "peerauthentication":
		mode := security.PeerAuthentication_MutualTLS_STRICT
		if p.steps%2 == 0 {
			mode = security.PeerAuthentication_MutualTLS_PERMISSIVE
		}
		return p.apply(peerAuthentication(mode))
	}
	return fmt.Errorf("unknown change %q", kind)
}

// setup is what proxies need to connect.
type setup struct {
	size
	Address   string
	Root      []byte
	Tokens    []string
	Endpoints []string // to subscribe to
	Routes    []string
	Bytes     int // floor: what each connection gets
}

func (s *setup) write(path string) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

func (p *plane) setup() *setup {
	s := &setup{size: p.size}
	for _, set := range p.world.Sets(p.proxy(0)) {
		for _, r := range set.Resources[envoy.Endpoints] {
			s.Endpoints = append(s.Endpoints, r.Name)
		}
		for _, r := range set.Resources[envoy.Route] {
			s.Routes = append(s.Routes, r.Name)
		}
	}
	return s
}

// view is xds.Mesh.
type view struct {
	*envoy.World
	*mesh.Snapshot
}

func (v view) Workload(namespace, name string) *mesh.Workload {
	return v.Snapshot.Workload(namespace, name)
}

// serveWeft is the process of weft.
func serveWeft(s size, path string) error {
	plane, err := newPlane(s)
	if err != nil {
		return err
	}
	// The proxies' scopes are not built yet: that is a part of connecting.
	plane.derive()
	ctx := context.Background()
	quiet := slog.New(slog.DiscardHandler)
	c := xds.Config{TrustDomain: "cluster.local", Log: quiet}
	var serving *tls.Config
	to := &setup{}
	{
		// A second plane names the resources, so that this one stays cold.
		other, err := newPlane(s)
		if err != nil {
			return err
		}
		other.derive()
		to = other.setup()
	}
	if s.TLS {
		dir := filepath.Dir(path)
		issuer, err := newIssuer(filepath.Join(dir, "jwks.json"))
		if err != nil {
			return err
		}
		keys, err := identity.OpenKeys(ctx, filepath.Join(dir, "jwks.json"), identity.KeyOptions{}, quiet)
		if err != nil {
			return err
		}
		authority, err := identity.Open(ctx, identity.Dir(filepath.Join(dir, "ca")), "cluster.local")
		if err != nil {
			return err
		}
		c.Verifier, c.Authority = &identity.Verifier{Keys: keys, Issuer: issuerName, Audience: "istio-ca"}, authority
		serving = &tls.Config{GetCertificate: identity.NewServing(authority, "localhost").Certificate}
		to.Root = authority.Roots()
		for i := range s.Sidecars {
			pod := s.pod(i)
			token, err := issuer.token(pod.Namespace, "client", pod.Name, string(pod.UID))
			if err != nil {
				return err
			}
			to.Tokens = append(to.Tokens, token)
		}
	}
	server := xds.NewServer(c)
	publish := func() {
		since := time.Now()
		plane.derive()
		server.Publish(view{plane.world, plane.snapshot}, since)
	}
	publish()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(ctx, l, serving) }()
	to.Address = l.Addr().String()
	if err := to.write(path); err != nil {
		return err
	}
	if address := os.Getenv("WEFT_BENCH_PPROF"); address != "" {
		go func() { _ = http.ListenAndServe(address, nil) }()
	}
	var profile *os.File
	return answer(func(verb string, args []string) (any, error) {
		switch verb {
		case "usage":
		case "tidy":
			tidy()
		case "profile":
			if profile, err = os.Create(args[0]); err != nil {
				return nil, err
			}
			if err := pprof.StartCPUProfile(profile); err != nil {
				return nil, err
			}
		case "profiled":
			pprof.StopCPUProfile()
			if err := profile.Close(); err != nil {
				return nil, err
			}
		case "rollout":
			begun, err := used()
			if err != nil {
				return nil, err
			}
			for n := 1; n <= rolledPods; n++ {
				if err := plane.apply(plane.slice(rolled, rolledPods, n)); err != nil {
					return nil, err
				}
				publish()
				time.Sleep(10 * time.Millisecond) // a pod is not ready sooner
			}
			return begun, nil
		case "churn":
			begun, err := used()
			if err != nil {
				return nil, err
			}
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return nil, err
			}
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for i := range n {
				<-tick.C
				plane.steps++
				if err := plane.apply(plane.virtualService(20+i%50%plane.Services, plane.steps)); err != nil {
					return nil, err
				}
				publish()
			}
			return begun, nil
		default:
			begun, err := used()
			if err != nil {
				return nil, err
			}
			if err := plane.change(verb); err != nil {
				return nil, err
			}
			publish()
			return begun, nil
		}
		return used()
	})
}
