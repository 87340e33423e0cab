package main

import (
	"fmt"
	"net/http"
	"net/http/pprof"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weft-mesh/weft/xds"
)

// monitoring is the port of metrics, readiness and debug pages.
type monitoring struct {
	server        *xds.Server
	registry      *prometheus.Registry
	feed          *feed
	stopping      <-chan struct{} // closed when this replica wants no new proxies
	rootNamespace string
}

func (m monitoring) handler() http.Handler {
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-m.stopping:
			http.Error(w, "this replica is stopping", http.StatusServiceUnavailable)
			return
		default:
		}
		if !m.server.Ready() {
			http.Error(w, "the configuration is not loaded yet", http.StatusServiceUnavailable)
		}
	})

	// Debug pages and profiles tell about others' configuration, or cost time.
	debug := http.NewServeMux()
	debug.Handle("GET /debug/", m.server.Debug())
	debug.HandleFunc("GET /debug/problemz", func(w http.ResponseWriter, _ *http.Request) {
		for _, p := range m.feed.problems() {
			fmt.Fprintln(w, p.text)
		}
	})
	debug.HandleFunc("GET /debug/pprof/", pprof.Index)
	debug.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	debug.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	debug.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.Handle("/debug/", m.server.Guard(debug, m.rootNamespace))
	return mux
}
