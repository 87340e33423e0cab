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
	"syscall"
	"time"

	meshconfig "istio.io/api/mesh/v1alpha1"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/cmd/weftd/cluster"
	"github.com/weft-mesh/weft/identity"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/webhook"
	"github.com/weft-mesh/weft/xds"
)

// run is the whole control plane. It returns when ctx ends, or when one of its parts fails.
func run(ctx context.Context, o options, log *slog.Logger) error {
	began := time.Now()
	if err := o.validate(); err != nil {
		return err
	}
	// Ports first: a control plane that cannot listen should not touch anything.
	ports, err := o.listen()
	if err != nil {
		return err
	}
	defer ports.close()

	api, err := o.connect(log)
	if err != nil {
		return err
	}
	// asked ends when somebody asks this process to stop; ctx when it has handed over its proxies.
	asked := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if o.drain <= 0 {
		defer context.AfterFunc(asked, cancel)()
	}
	group, ctx := errgroup.WithContext(ctx)
	authority, err := identity.Open(asked, o.authorityStore(api, log), o.trustDomain)
	if err != nil {
		return fmt.Errorf("certificate authority: %w", err)
	}
	verifier, err := o.verifier(asked, api, log)
	if err != nil {
		return err
	}
	meshOptions := mesh.Options{RootNamespace: o.rootNamespace, MeshConfigMap: o.meshConfigMap(), ClusterDomain: o.clusterDomain, TrustDomain: o.trustDomain}
	if err := meshOptions.FromEnvironment(os.Getenv); err != nil {
		return err
	}
	store := mesh.NewStore(meshOptions)
	recall := &recall{log: log}
	settings := xds.Config{Verifier: verifier, Authority: authority, TrustDomain: o.trustDomain, TTL: o.svidTTL, Remember: recall.remember, Log: log}
	if err := settings.FromEnvironment(os.Getenv); err != nil {
		return err
	}
	discovery := xds.NewServer(settings)
	recall.open(&o, api, store, discovery)
	injection, err := o.injection(store, log)
	if err != nil {
		return err
	}
	injector, err := webhook.New(webhook.Config{
		Namespace: func(name string) (map[string]string, bool) {
			if ns := store.Namespace(name); ns != nil {
				return ns.Labels, true
			}
			return nil, false
		},
		Options:    injection,
		Mesh:       func() *meshconfig.MeshConfig { return store.Mesh() },
		Discovery:  func(ns string) mesh.Discovery { return mesh.DiscoveryOf(store.Namespace(ns), store.Mesh()) },
		References: store,
		Log:        log,
	})
	if err != nil {
		return fmt.Errorf("injection: %w", err)
	}
	var events *cluster.Events
	if api != nil {
		events = api.NewEvents(log)
	}
	feed := &feed{source: o.source(api, log), store: store, server: discovery, recall: recall, events: events, log: log, loaded: make(chan struct{})}

	registry := prometheus.NewRegistry()
	registry.MustRegister(discovery.Collectors()...)
	registry.MustRegister(injector.Collectors()...)
	registry.MustRegister(feed.collectors()...)
	registry.MustRegister(recall.collectors()...)
	monitoring := monitoring{server: discovery, registry: registry, feed: feed, stopping: asked.Done(), rootNamespace: o.rootNamespace}

	serving := &tls.Config{
		GetCertificate: identity.NewServing(authority, o.names()...).Certificate,
		MinVersion:     tls.VersionTLS12,
	}
	group.Go(func() error { return authority.Run(ctx, log) })
	group.Go(func() error {
		select {
		case <-feed.loaded:
			log.Info("the mesh is loaded", "after", time.Since(began).Round(time.Millisecond))
		case <-ctx.Done():
		}
		return nil
	})
	group.Go(func() error { return feed.run(ctx) })
	group.Go(func() error { return recall.run(ctx) })
	group.Go(func() error { return discovery.Serve(ctx, ports.xds, serving) })
	if ports.plaintext != nil {
		group.Go(func() error { return discovery.Serve(ctx, ports.plaintext, nil) })
	}
	group.Go(func() error {
		// A pod that came before the mesh configuration would get a proxy with defaults
		// for the rest of its life. Connections wait in the listener's queue instead.
		select {
		case <-feed.loaded:
		case <-ctx.Done():
			return nil
		}
		return serveHTTP(ctx, tls.NewListener(ports.webhook, webTLS(serving)), injector)
	})
	group.Go(func() error { return o.followInjection(ctx, store, injector, log) })
	group.Go(func() error { return serveHTTP(ctx, ports.monitoring, monitoring.handler()) })
	if api != nil {
		group.Go(func() error { return o.lead(during(ctx, asked), api, authority, feed.loaded, events, log) })
	}
	if o.drain > 0 {
		group.Go(func() error {
			select {
			case <-asked.Done():
			case <-ctx.Done():
				return nil
			}
			log.Info("proxies are asked to move to other replicas", "within", o.drain)
			discovery.Drain(ctx, o.drain)
			cancel()
			return nil
		})
	}
	log.Info("weftd serves", "xds", ports.xds.Addr(), "webhook", ports.webhook.Addr(), "monitoring", ports.monitoring.Addr(),
		"trustDomain", o.trustDomain, "after", time.Since(began).Round(time.Millisecond))
	err = group.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	log.Info("weftd stops", "error", err)
	return err
}

func (o *options) validate() error {
	switch {
	case len(o.config) == 0 && !o.kube:
		return errors.New("neither --kube nor --config is given: read the mesh from a cluster, or name a file or directory with its objects")
	case len(o.config) > 0 && o.kube:
		return errors.New("--kube and --config exclude each other: the mesh has one source")
	case o.kubeconfig != "" && !o.kube:
		return errors.New("--kubeconfig needs --kube")
	case o.caDir == "" && !o.kube:
		return errors.New("--ca-dir is missing: name the directory of the certificate authority")
	case o.jwks == "" && !o.kube:
		return errors.New("--jwks is missing: name the file or URL of the token issuer's public keys (in a cluster: https://kubernetes.default.svc/openid/v1/jwks)")
	case o.tokenIssuer == "" && !o.kube:
		return errors.New("--token-issuer is missing: name the issuer of service account tokens (in a cluster: kubectl get --raw /.well-known/openid-configuration)")
	case o.tokenAudience == "":
		return errors.New("--token-audience must not be empty: any token of the cluster would do then")
	case o.drain < 0:
		return fmt.Errorf("--drain %s: want a duration, or 0 to stop at once", o.drain)
	case o.svidTTL < time.Second:
		return fmt.Errorf("--svid-ttl %s: want at least 1s", o.svidTTL)
	}
	for _, path := range o.config {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("--config: %w", err)
		}
	}
	if err := identity.ValidateTrustDomain(o.trustDomain); err != nil {
		return fmt.Errorf("--trust-domain: %w", err)
	}
	return nil
}

// verifier checks tokens with the keys of --jwks, or of the API server.
func (o *options) verifier(ctx context.Context, api *cluster.Cluster, log *slog.Logger) (*identity.Verifier, error) {
	v := &identity.Verifier{Issuer: o.tokenIssuer, Audience: o.tokenAudience}
	var err error
	if o.jwks != "" {
		if v.Keys, err = identity.OpenKeys(ctx, o.jwks, identity.KeyOptions{CAFile: o.jwksCA, TokenFile: o.jwksToken}, log); err != nil {
			return nil, fmt.Errorf("--jwks: %w", err)
		}
	} else if v.Keys, err = api.Keys(ctx, log); err != nil {
		return nil, err
	}
	if v.Issuer == "" {
		v.Issuer, err = api.Issuer(ctx, log)
	}
	return v, err
}

// during ends with either of two contexts.
func during(a, b context.Context) context.Context {
	ctx, cancel := context.WithCancel(a)
	context.AfterFunc(b, cancel)
	return ctx
}

// names are those that proxies and the API server call this control plane by.
func (o *options) names() []string {
	var names []string
	for _, service := range []string{"istiod", "istiod-" + o.revision} {
		names = append(names, service+"."+o.rootNamespace+".svc", service+"."+o.rootNamespace+".svc."+o.clusterDomain, service+"."+o.rootNamespace, service)
	}
	return append(append(names, "localhost", "127.0.0.1", "::1"), o.servingNames...)
}

// ports are the open listeners; plaintext may be nil.
type ports struct{ xds, plaintext, webhook, monitoring net.Listener }

func (o *options) listen() (ports, error) {
	var p ports
	for _, l := range []struct {
		flag, address string
		into          *net.Listener
	}{
		{"--xds-address", o.xdsAddress, &p.xds},
		{"--plaintext-xds-address", o.plaintextAddress, &p.plaintext},
		{"--webhook-address", o.webhookAddress, &p.webhook},
		{"--monitoring-address", o.monitoringAddress, &p.monitoring},
	} {
		if l.address == "" && l.into == &p.plaintext {
			continue
		}
		listener, err := net.Listen("tcp", l.address)
		if err != nil {
			p.close()
			if errors.Is(err, syscall.EADDRINUSE) {
				return ports{}, fmt.Errorf("%s %s is taken by another process; stop it, or choose another address", l.flag, l.address)
			}
			return ports{}, fmt.Errorf("%s: %w", l.flag, err)
		}
		*l.into = listener
	}
	return p, nil
}

func (p *ports) close() {
	for _, l := range []net.Listener{p.xds, p.plaintext, p.webhook, p.monitoring} {
		if l != nil {
			l.Close() // a second time for those that were served: harmless
		}
	}
}

func webTLS(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{"h2", "http/1.1"}
	return c
}

// serveHTTP serves until ctx ends, then lets requests in progress finish.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	}()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}
