package main

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/tools/metrics"
)

// requests counts what is asked of the API server. client-go knows one such counter a process, whatever the number of clients.
type requests struct{ *prometheus.CounterVec }

var apiRequests = sync.OnceValue(func() requests {
	r := requests{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weft_node_api_requests_total", Help: "Requests to the API server by method and status code; a watch counts once, when it begins.",
	}, []string{"method", "code"})}
	metrics.Register(metrics.RegisterOpts{RequestResult: r})
	return r
})

// Increment is called by client-go.
func (r requests) Increment(_ context.Context, code, method, _ string) {
	r.WithLabelValues(method, code).Inc()
}
