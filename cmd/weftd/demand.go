package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/cmd/weftd/cluster"
	"github.com/weft-mesh/weft/cmd/weftd/learned"
	"github.com/weft-mesh/weft/envoy"
	"github.com/weft-mesh/weft/mesh"
)

// recall keeps what workloads have asked for, where there is a place for it: --learned-dir, or the cluster.
type recall struct {
	keeper *learned.Keeper // nil: it is forgotten with this process
	log    *slog.Logger
}

// patience is how long the first publication waits for the record: proxies that all come back at the same time should get at once what they need, and a record that
// cannot be read should not keep them waiting.
const patience = 10 * time.Second

// remember takes in that a workload has asked for something new.
func (r *recall) remember(d *envoy.Demand) {
	if r.keeper != nil {
		r.keeper.Remember(d)
	}
}

// open says where the record is, and who learns from it.
func (r *recall) open(o *options, api *cluster.Cluster, store *mesh.Store, learner learned.Learner) {
	c := learned.Config{Learner: learner, Log: r.log, Present: func() map[string]bool {
		present := map[string]bool{}
		for w := range store.Current().Workloads() {
			present[w.Namespace+"/"+w.ServiceAccount] = true
		}
		return present
	}}
	switch {
	case o.learnedDir != "":
		c.Store = learned.Dir(o.learnedDir)
	case api != nil:
		c.Store = api.Learned(o.rootNamespace)
	default:
		return
	}
	r.keeper = learned.New(c)
}

// run keeps the record until ctx ends.
func (r *recall) run(ctx context.Context) error {
	if r.keeper == nil {
		return nil
	}
	return r.keeper.Run(ctx)
}

// await waits until the record was read, or for as long as that is worth it.
func (r *recall) await(ctx context.Context) {
	if r.keeper == nil {
		return
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-r.keeper.Loaded():
	case <-ctx.Done():
	case <-timeout.C:
		r.log.Warn("the record of what workloads have asked for cannot be read yet; proxies are served without it", "after", patience)
	}
}

func (r *recall) collectors() []prometheus.Collector {
	if r.keeper == nil {
		return nil
	}
	gauge := func(name, help string, of func(learned.Stats) int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(of(r.keeper.Stats())) })
	}
	counter := func(name, help string, of func(learned.Stats) int) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(of(r.keeper.Stats())) })
	}
	return []prometheus.Collector{
		gauge("weft_learned_workloads", "Workloads of which it is known what they have asked for.", func(s learned.Stats) int { return s.Workloads }),
		gauge("weft_learned_names", "Names that workloads have asked for, together.", func(s learned.Stats) int { return s.Names }),
		counter("weft_learned_writes_total", "Times that a part of the record of it was written.", func(s learned.Stats) int { return s.Writes }),
		counter("weft_learned_write_errors_total", "Times that a part of the record could not be written.", func(s learned.Stats) int { return s.Failures }),
	}
}
