package main

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/weft-mesh/weft/cmd/weftd/cluster"
	"github.com/weft-mesh/weft/deploy/release"
	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/xds"
)

// feed carries what the user wrote to the discovery server:
// source -> store -> snapshot -> world -> publication.
type feed struct {
	source source
	store  *mesh.Store
	server *xds.Server
	recall *recall
	events *cluster.Events // nil without a cluster
	log    *slog.Logger

	changed  atomic.Pointer[time.Time] // when the first change came that was not published yet
	loaded   chan struct{}             // closed when everything was read once
	latest   atomic.Pointer[view]
	triggers *prometheus.CounterVec
	inbound  *prometheus.CounterVec
}

// source keeps a store as the user wants the mesh, until ctx ends. It calls changing before it changes the
// store, and loaded once, when everything is in the store that was there at the start.
type source func(ctx context.Context, store *mesh.Store, changing, loaded func()) error

// view is one published state of the mesh. It is the server's Mesh.
type view struct {
	*envoy.World
	snapshot *mesh.Snapshot
}

func (v view) Workload(namespace, name string) *mesh.Workload {
	return v.snapshot.Workload(namespace, name)
}

// OnDemand reports whether the pod's sidecar is told what its workload asks for, and nothing else.
func (v view) OnDemand(w *mesh.Workload) bool { return v.snapshot.OnDemand(w) }

// run follows the source until ctx ends. Nothing is published before all of it
// was read once: a proxy that is told half of the mesh would drop the other half.
func (f *feed) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return f.source(ctx, f.store, f.changing, func() { close(f.loaded) })
	})
	group.Go(func() error { return f.complain(ctx) })
	group.Go(func() error {
		select {
		case <-f.loaded:
		case <-ctx.Done():
			return nil
		}
		f.recall.await(ctx)
		for u := range f.store.Updates(ctx) {
			f.publish(u)
		}
		return nil
	})
	return group.Wait()
}

// changing notes when the oldest change was made that is not published yet.
func (f *feed) changing() {
	now := time.Now()
	f.changed.CompareAndSwap(nil, &now)
}

func (f *feed) publish(u mesh.Update) {
	since := time.Now()
	if first := f.changed.Swap(nil); first != nil {
		since = *first
	}
	for kind := range kinds(u.Changes) {
		f.triggers.WithLabelValues(kind).Inc()
	}
	for k := range u.Changes.All() {
		f.inbound.WithLabelValues(inbound(k.Kind)).Inc()
	}
	var previous *envoy.World
	if v := f.latest.Load(); v != nil {
		previous = v.World
	}
	v := &view{envoy.NewWorld(u.Snapshot, previous), u.Snapshot}
	f.latest.Store(v)
	f.server.Publish(v, since)
	f.log.Debug("published", "snapshot", u.Snapshot.Version(), "changes", u.Changes.Len())
}

// kinds are Istio's classes of reasons for a push.
func kinds(c mesh.ChangeSet) map[string]bool {
	out := make(map[string]bool)
	for k := range c.All() {
		switch k.Kind {
		case mesh.KindEndpoints, "EndpointSlice":
			out["endpoint"] = true
		case "Service":
			out["service"] = true
		case "Pod":
			out["proxy"] = true
		default:
			out["config"] = true
		}
	}
	return out
}

// inbound is Istio's word for the kind of an object that changed.
func inbound(kind string) string {
	switch kind {
	case mesh.KindEndpoints, "EndpointSlice", "Pod", "Node":
		return "eds"
	case "Service":
		return "svc"
	}
	return "config"
}

func (f *feed) collectors() []prometheus.Collector {
	f.triggers = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_push_triggers", Help: "Publications, by the kind of change that led to them."}, []string{"type"})
	count := func(name, help string, n func(*mesh.Snapshot) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(n(f.store.Current())) })
	}
	f.inbound = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_inbound_updates", Help: "Objects that changed, by kind."}, []string{"type"})
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: "istio_build", Help: "Which control plane this is.",
		ConstLabels: prometheus.Labels{"component": "pilot", "tag": release.Version()}})
	build.Set(1)
	return []prometheus.Collector{
		f.triggers,
		f.inbound,
		build,
		count("pilot_virt_services", "VirtualServices that the mesh knows.", func(s *mesh.Snapshot) int { return s.Count("VirtualService") }),
		count("pilot_services", "Services that the mesh knows.", func(s *mesh.Snapshot) int { return len(s.VisibleServices("")) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_problems", Help: "Parts of the configuration that could not be used; /debug/problemz lists them."},
			func() float64 { return float64(len(f.problems())) }),
	}
}
