package node

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the agent's counters.
type Metrics struct {
	chainReady  prometheus.Gauge
	changes     *prometheus.CounterVec
	installErrs prometheus.Counter
	questions   *prometheus.CounterVec
	sandboxes   prometheus.Gauge
	repairs     *prometheus.CounterVec
	repairTime  prometheus.Histogram
	listErrs    prometheus.Counter
	inotify     prometheus.Gauge
	gates       *prometheus.CounterVec
	gateTime    prometheus.Histogram
}

// NewMetrics registers the counters.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		chainReady: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weft_node_chain_ready", Help: "1 while the network configuration that pods are made from ends with weft-cni as it should be.",
		}),
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_node_installation_changes_total", Help: "What had to be written to the node, by part (binary, entry, list, converted, undone).",
		}, []string{"part"}),
		installErrs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_node_installation_errors_total", Help: "Passes over the node's files that failed.",
		}),
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_node_plugin_questions_total", Help: "Questions of the plugin by answer (redirect, pass, excluded, unknown, gate, refused, error).",
		}, []string{"answer"}),
		sandboxes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weft_node_redirected_sandboxes", Help: "Pod sandboxes on this node that are to be redirected.",
		}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_node_repairs_total", Help: "Live repairs of pods' redirect rules by reason (start: wrong when first seen; drift: was right before) and result (repaired, failed).",
		}, []string{"reason", "result"}),
		repairTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weft_node_repair_seconds", Help: "Time to read, write and read back the rules of one pod that needed repair.", Buckets: prometheus.ExponentialBuckets(0.0005, 4, 8),
		}),
		listErrs: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_node_runtime_errors_total", Help: "Failed questions to the container runtime.",
		}),
		inotify: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "weft_node_inotify_instances", Help: "How many inotify instances the node allows each user; each sidecar takes three, and all have one UID.",
		}),
		gates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_node_gates_total", Help: "Requests of kubelet that held a pod's start back until its proxy was ready, by result (ready, late, gone).",
		}, []string{"result"}),
		gateTime: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "weft_node_gate_seconds", Help: "How long kubelet waited for a proxy that became ready.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 11),
		}),
	}
	for _, result := range []string{"ready", "late", "gone"} {
		m.gates.WithLabelValues(result) // 0 is to be seen too
	}
	r.MustRegister(m.gates, m.gateTime, m.inotify, m.chainReady, m.changes, m.installErrs, m.questions, m.sandboxes, m.repairs, m.repairTime, m.listErrs)
	return m
}

// Inotify tells the node's limit.
func (m *Metrics) Inotify(instances int) { m.inotify.Set(float64(instances)) }

// Installed counts one pass of Keep.
func (m *Metrics) Installed(r Report, err error) {
	if err != nil {
		m.installErrs.Inc()
	}
	for _, part := range r.Changed {
		m.changes.WithLabelValues(part).Inc()
	}
	if m.chainReady.Set(0); r.Problem == "" && err == nil {
		m.chainReady.Set(1)
	}
}
