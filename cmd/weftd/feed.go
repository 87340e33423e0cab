package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/files"
	"github.com/weft-mesh/weft/xds"
)

// feed carries what the user wrote to the discovery server:
// files -> store -> snapshot -> world -> publication.
type feed struct {
	paths  []string
	store  *mesh.Store
	server *xds.Server
	log    *slog.Logger

	changed  time.Time       // when the first change came that was not published yet
	loaded   chan struct{}   // closed when the files were read once
	said     map[string]bool // complaints about files that are in the log already
	latest   atomic.Pointer[view]
	triggers *prometheus.CounterVec
}

// view is one published state of the mesh. It is the server's Mesh.
type view struct {
	*envoy.World
	snapshot *mesh.Snapshot
}

func (v view) Workload(namespace, name string) *mesh.Workload {
	return v.snapshot.Workload(namespace, name)
}

// run follows the files until ctx ends. Nothing is published before all of them
// were read once: a proxy that is told half of the mesh would drop the other half.
func (f *feed) run(ctx context.Context) error {
	changes, err := files.Watch(ctx, f.paths...)
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	select {
	case c := <-changes:
		f.apply(c)
		close(f.loaded)
	case <-ctx.Done():
		return nil
	}
	updates := f.store.Updates(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-changes:
			if !ok {
				changes = nil
				continue
			}
			f.apply(c)
		case u, ok := <-updates:
			if !ok {
				return nil
			}
			f.publish(u)
		}
	}
}

func (f *feed) apply(c files.Change) {
	if f.changed.IsZero() {
		f.changed = time.Now()
	}
	said := make(map[string]bool)
	for _, err := range c.Errors {
		said[err.Error()] = true
		if !f.said[err.Error()] {
			f.log.Error("configuration not used; what it replaces stays in force", "error", err)
		}
	}
	for _, w := range c.Warnings {
		text := fmt.Sprint(w)
		said[text] = true
		if !f.said[text] {
			f.log.Warn("configuration", "warning", text)
		}
	}
	f.said = said
	if err := f.store.Update(c.Apply, c.Delete); err != nil {
		f.log.Error("configuration not used; what it replaces stays in force", "error", err)
	}
}

func (f *feed) publish(u mesh.Update) {
	since := f.changed
	if since.IsZero() {
		since = time.Now()
	}
	f.changed = time.Time{}
	for kind := range kinds(u.Changes) {
		f.triggers.WithLabelValues(kind).Inc()
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
		case mesh.KindEndpoints:
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

func (f *feed) collectors() []prometheus.Collector {
	f.triggers = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_push_triggers", Help: "Publications, by the kind of change that led to them."}, []string{"type"})
	count := func(name, help string, n func(*mesh.Snapshot) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(n(f.store.Current())) })
	}
	return []prometheus.Collector{
		f.triggers,
		count("pilot_services", "Services that the mesh knows.", func(s *mesh.Snapshot) int { return len(s.VisibleServices("")) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weft_problems", Help: "Parts of the configuration that could not be used; /debug/problemz lists them."},
			func() float64 { return float64(len(f.problems())) }),
	}
}

// problems are parts of the user's configuration that could not be used.
func (f *feed) problems() []string {
	v := f.latest.Load()
	if v == nil {
		return nil
	}
	var out []string
	for _, p := range v.snapshot.Problems() {
		out = append(out, p.String())
	}
	for _, p := range v.Problems() {
		out = append(out, fmt.Sprintf("%s: %s: %s", p.Ref, p.Field, p.Message))
	}
	return out
}
