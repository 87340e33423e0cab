package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/xds"
)

// view is xds.Mesh, as in weftd.
type view struct {
	*envoy.World
	snapshot *mesh.Snapshot
}

func (v view) Workload(namespace, name string) *mesh.Workload {
	return v.snapshot.Workload(namespace, name)
}

func (v view) OnDemand(w *mesh.Workload) bool { return v.snapshot.OnDemand(w) }

// weft is the process of weft.
type weft struct {
	*plane
	server  *xds.Server
	profile *os.File
}

func serveWeft(s size, path string) error {
	plane, err := newPlane(s)
	if err != nil {
		return err
	}
	// The proxies' scopes are not built yet: that is a part of connecting. A second plane names the resources, so that this one stays cold.
	plane.derive()
	to, err := namedBy(s)
	if err != nil {
		return err
	}
	ctx := context.Background()
	quiet := slog.New(slog.DiscardHandler)
	c := xds.Config{TrustDomain: "cluster.local", Log: quiet}
	var serving *tls.Config
	if s.TLS {
		dir := filepath.Dir(path)
		jwks := filepath.Join(dir, "jwks.json")
		issuer, err := newIssuer(jwks)
		if err != nil {
			return err
		}
		keys, err := identity.OpenKeys(ctx, jwks, identity.KeyOptions{}, quiet)
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
		for i := range s.Sidecars + s.Staying {
			pod := s.client(i)
			token, err := issuer.token(pod.Namespace, pod.Spec.ServiceAccountName, pod.Name, string(pod.UID))
			if err != nil {
				return err
			}
			to.Tokens = append(to.Tokens, token)
		}
	}
	w := &weft{plane: plane, server: xds.NewServer(c)}
	w.publish()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = w.server.Serve(ctx, l, serving) }()
	health, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(health, http.HandlerFunc(w.ready)) }()
	to.Secure, to.Address, to.Ready = s.TLS, l.Addr().String(), health.Addr().String()
	if err := to.write(path); err != nil {
		return err
	}
	return answer(w.do)
}

// namedBy is a setup without an address.
func namedBy(s size) (*setup, error) {
	other, err := newPlane(s)
	if err != nil {
		return nil, err
	}
	other.derive()
	return other.setup(s.Protocol == "sotw"), nil
}

func (w *weft) publish() {
	since := time.Now()
	w.derive()
	w.server.Publish(view{w.world, w.snapshot}, since)
}

// ready is weftd's readiness.
func (w *weft) ready(out http.ResponseWriter, _ *http.Request) {
	if !w.server.Ready() {
		http.Error(out, "the configuration is not loaded yet", http.StatusServiceUnavailable)
	}
}

// do obeys one line, and answers with what was used before the work began, or, where there is no work, until now.
func (w *weft) do(verb string, args []string) (any, error) {
	switch verb {
	case "usage":
		return used()
	case "tidy":
		tidy()
		return used()
	case "deserted":
		left, err := strconv.Atoi(args[0])
		if err != nil {
			return nil, fmt.Errorf("deserted %s: %w", args[0], err)
		}
		if err := w.deserted(left); err != nil {
			return nil, err
		}
		return used()
	case "profile":
		var err error
		if w.profile, err = os.Create(args[0]); err != nil {
			return nil, err
		}
		if err := pprof.StartCPUProfile(w.profile); err != nil {
			return nil, err
		}
		return used()
	case "profiled":
		pprof.StopCPUProfile()
		if err := w.profile.Close(); err != nil {
			return nil, err
		}
		return used()
	}
	begun, err := used()
	if err != nil {
		return nil, err
	}
	switch verb {
	case "rollout":
		return begun, w.rollout()
	case "churn":
		times, err := strconv.Atoi(args[0])
		if err != nil {
			return nil, fmt.Errorf("churn %s: %w", args[0], err)
		}
		return begun, w.churn(times)
	}
	if err := w.change(verb); err != nil {
		return nil, err
	}
	w.publish()
	return begun, nil
}

// deserted waits until no more than so many proxies are connected.
func (w *weft) deserted(left int) error {
	metrics := prometheus.NewRegistry()
	for _, c := range w.server.Collectors() {
		if err := metrics.Register(c); err != nil {
			return err
		}
	}
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		families, err := metrics.Gather()
		if err != nil {
			return err
		}
		connected := 0.0
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() == "pilot_xds" {
					connected += m.GetGauge().GetValue()
				}
			}
		}
		if connected <= float64(left) {
			return nil
		}
	}
	return errors.New("proxies are still connected a minute after they left")
}

// rollout replaces the pods of a service one after the other, 10 ms apart: the cluster could not do it faster.
func (w *weft) rollout() error {
	pause := time.NewTicker(10 * time.Millisecond)
	defer pause.Stop()
	for n := range rolledPods {
		<-pause.C
		if err := w.apply(w.slice(rolled, rolledPods, n+1)); err != nil {
			return err
		}
		w.publish()
	}
	return nil
}

// churn changes a VirtualService ten times a second, each time another one of fifty.
func (w *weft) churn(times int) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := range times {
		<-tick.C
		w.steps++
		if err := w.apply(w.virtualService(firstOwn+n%50%(w.Services-firstOwn), w.steps)); err != nil {
			return err
		}
		w.publish()
	}
	return nil
}
