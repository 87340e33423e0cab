package xds

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-mesh/weft/envoy"
)

// metrics have the names and labels of Istio's control plane where it has the
// same thing, so that its dashboards and alerts work; others begin with weft_.
type metrics struct {
	byType      [envoy.NumTypes]typeMetrics
	vectors     []prometheus.Collector
	queue       prometheus.Histogram
	convergence prometheus.Histogram
	send        prometheus.Histogram
	timeouts    prometheus.Counter
	unknown     prometheus.Counter
	failures    prometheus.Counter
	requests    prometheus.Counter
	issued      prometheus.Counter
	signErrors  prometheus.Counter
	names       prometheus.Counter
	strangers   prometheus.Counter
	tables      prometheus.Counter
}

type typeMetrics struct {
	pushes, rejects, sent, removed, kept, bytes prometheus.Counter
	size, took                                  prometheus.Observer
}

func newMetrics(s *Server) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	vector := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type"})
	}
	pushes := vector("pilot_xds_pushes", "Responses sent, by type.")
	rejects := vector("pilot_total_xds_rejects", "Responses that a proxy rejected, by type.")
	sent := vector("weft_xds_resources_sent_total", "Resources sent, by type.")
	removed := vector("weft_xds_resources_removed_total", "Names of removed resources sent, by type.")
	kept := vector("weft_xds_resources_unchanged_total", "Resources that reconnecting proxies had already and that were not sent, by type.")
	bytes := vector("weft_xds_sent_bytes_total", "Size of responses sent, by type.")
	size := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "pilot_xds_config_size_bytes", Help: "Size of responses, by type.",
		Buckets: []float64{1, 10000, 1000000, 4000000, 10000000, 40000000},
	}, []string{"type"})
	took := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "pilot_xds_push_time", Help: "Seconds that writing one response took, by type.",
		Buckets: []float64{.001, .01, .1, 1, 3, 5, 10, 20, 30},
	}, []string{"type"})
	m := &metrics{
		queue: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pilot_proxy_queue_time", Help: "Seconds from a change until the work for a proxy begins.",
			Buckets: []float64{.01, .1, .5, 1, 3, 5, 10, 20, 30},
		}),
		convergence: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pilot_proxy_convergence_time", Help: "Seconds from a change until a proxy has confirmed it.",
			Buckets: []float64{.01, .03, .1, .5, 1, 3, 5, 10, 20, 30},
		}),
		send: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "pilot_xds_send_time", Help: "Seconds that writing one response took.",
			Buckets: []float64{.001, .01, .1, 1, 3, 5, 10, 20, 30},
		}),
		timeouts:   counter("pilot_xds_write_timeout", "Streams cut because the proxy did not read."),
		unknown:    counter("weft_xds_unknown_type_requests_total", "Requests for types that this server does not know."),
		failures:   counter("citadel_server_authentication_failure_count", "Streams and requests refused for their token."),
		requests:   counter("citadel_server_csr_count", "Certificates asked for."),
		issued:     counter("citadel_server_success_cert_issuance_count", "Certificates issued."),
		signErrors: counter("citadel_server_csr_sign_err_count", "Certificates that could not be signed."),
		names:      counter("weft_on_demand_names_learned_total", "Names that workloads asked for for the first time."),
		strangers:  counter("weft_on_demand_names_refused_total", "Names that apps asked for and that are no names, or clusters beyond the limit; answered 404."),
		tables:     counter("weft_on_demand_tables_widened_total", "Route tables that a workload got as a whole, for asking for too many names that nobody has."),
	}
	for t := range m.byType {
		l := strings.ToLower(shortName(envoy.Type(t)))
		m.byType[t] = typeMetrics{
			pushes: pushes.WithLabelValues(l), rejects: rejects.WithLabelValues(l), sent: sent.WithLabelValues(l),
			removed: removed.WithLabelValues(l), kept: kept.WithLabelValues(l), bytes: bytes.WithLabelValues(l),
			size: size.WithLabelValues(l), took: took.WithLabelValues(l),
		}
	}
	m.vectors = []prometheus.Collector{pushes, rejects, sent, removed, kept, bytes, size, took, m.queue, m.convergence, m.send,
		m.timeouts, m.unknown, m.failures, m.requests, m.issued, m.signErrors, m.names, m.strangers, m.tables, connections{s}}
	if a := s.config.Authority; a != nil {
		m.vectors = append(m.vectors,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "citadel_server_root_cert_expiry_timestamp", Help: "Unix time at which the first trusted root ends."},
				func() float64 { return float64(a.RootExpiry().Unix()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "citadel_server_root_cert_expiry_seconds", Help: "Seconds until the first trusted root ends."},
				func() float64 { return time.Until(a.RootExpiry()).Seconds() }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "citadel_server_cert_chain_expiry_timestamp", Help: "Unix time at which the signing certificate ends."},
				func() float64 { return float64(a.SignerExpiry().Unix()) }))
	}
	return m
}

// Collectors returns the server's metrics, to be registered once.
func (s *Server) Collectors() []prometheus.Collector { return s.metrics.vectors }

func (m *metrics) sentResponse(f *frame, took time.Duration) {
	t := &m.byType[f.info.typ]
	size := f.parts.Len()
	t.pushes.Inc()
	t.sent.Add(float64(f.info.count()))
	t.removed.Add(float64(len(f.info.removed)))
	t.bytes.Add(float64(size))
	t.size.Observe(float64(size))
	t.took.Observe(took.Seconds())
	m.send.Observe(took.Seconds())
}

func (m *metrics) rejected(t envoy.Type)         { m.byType[t].rejects.Inc() }
func (m *metrics) unchanged(t envoy.Type, n int) { m.byType[t].kept.Add(float64(n)) }
func (m *metrics) waited(d time.Duration)        { m.queue.Observe(d.Seconds()) }
func (m *metrics) converged(d time.Duration)     { m.convergence.Observe(d.Seconds()) }
func (m *metrics) writeTimeout()                 { m.timeouts.Inc() }
func (m *metrics) learned(n int)                 { m.names.Add(float64(n)) }
func (m *metrics) widened()                      { m.tables.Inc() }
func (m *metrics) turnedAway(n int)              { m.strangers.Add(float64(n)) }
func (m *metrics) unknownType()                  { m.unknown.Inc() }
func (m *metrics) loginFailed()                  { m.failures.Inc() }
func (m *metrics) signed()                       { m.requests.Inc(); m.issued.Inc() }
func (m *metrics) signingFailed()                { m.requests.Inc(); m.signErrors.Inc() }

// connections counts proxies, and what is kept for them, when it is asked.
type connections struct{ s *Server }

var (
	workloadsDesc = prometheus.NewDesc("weft_on_demand_workloads", "Workloads whose proxies are told what they ask for.", nil, nil)
	demandDesc    = prometheus.NewDesc("weft_on_demand_names", "Names that those workloads have asked for, by type.", []string{"type"}, nil)
	connectedDesc = prometheus.NewDesc("pilot_xds", "Connected proxies, by version of Envoy.", []string{"version"}, nil)
	refusedDescs  = func() (d [envoy.NumTypes]*prometheus.Desc) {
		for t := range d {
			d[t] = prometheus.NewDesc("pilot_xds_"+strings.ToLower(shortName(envoy.Type(t)))+"_reject",
				"Resources that a connected proxy does not accept at their present version.", []string{"node"}, nil)
		}
		return d
	}()
)

func (c connections) Describe(ch chan<- *prometheus.Desc) {
	ch <- connectedDesc
	ch <- workloadsDesc
	ch <- demandDesc
	for _, d := range refusedDescs {
		ch <- d
	}
}

func (c connections) Collect(ch chan<- prometheus.Metric) {
	versions := make(map[string]int)
	refused := make(map[string]*[envoy.NumTypes]int)
	for _, ses := range c.s.connected() {
		versions[ses.node.version]++
		ses.mu.Lock()
		for t := range envoy.NumTypes {
			if n := len(ses.protocol.status(t).Refused); n > 0 {
				if refused[ses.name()] == nil {
					refused[ses.name()] = new([envoy.NumTypes]int)
				}
				refused[ses.name()][t] += n
			}
		}
		ses.mu.Unlock()
	}
	demands := c.s.demands.list()
	hosts, clusters := 0, 0
	for _, h := range demands {
		hosts, clusters = hosts+len(h.VirtualHosts), clusters+len(h.Clusters)
	}
	ch <- prometheus.MustNewConstMetric(workloadsDesc, prometheus.GaugeValue, float64(len(demands)))
	ch <- prometheus.MustNewConstMetric(demandDesc, prometheus.GaugeValue, float64(hosts), "vhds")
	ch <- prometheus.MustNewConstMetric(demandDesc, prometheus.GaugeValue, float64(clusters), "cds")
	for v, n := range versions {
		ch <- prometheus.MustNewConstMetric(connectedDesc, prometheus.GaugeValue, float64(n), v)
	}
	for name, counts := range refused {
		for t, n := range counts {
			if n > 0 {
				ch <- prometheus.MustNewConstMetric(refusedDescs[t], prometheus.GaugeValue, float64(n), name)
			}
		}
	}
}
