package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/weft-mesh/weft/cni/node"
	"github.com/weft-mesh/weft/redirect"
)

// agent is one running weft-node.
type agent struct {
	options
	install *node.Installation
	metrics *node.Metrics
	teller  teller
	log     *slog.Logger

	mu      sync.Mutex
	known   bool
	problem string      // of the chain, "" when complete
	works   bool        // the installed binary was tried since it last changed
	taint   chan string // problems for nodeTaint; nil without
	noted   []string
	warning string // of the inotify limit; it does not make the node unready
}

// run is the whole agent; it returns when ctx ends, and leaves the node as it is.
func run(ctx context.Context, o options, log *slog.Logger) error {
	if o.node == "" {
		return errors.New("--node-name is missing: set it, or NODE_NAME from the pod's spec.nodeName")
	}
	if o.ownList != "" && (filepath.Base(o.ownList) != o.ownList || filepath.Ext(o.ownList) != ".conflist") {
		return fmt.Errorf("--own-conflist %q: want a file name that ends in .conflist", o.ownList)
	}
	backend, err := redirect.Open(o.backend)
	if err != nil {
		return fmt.Errorf("--backend: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(apiRequests(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	a := &agent{options: o, install: o.installation(), metrics: node.NewMetrics(registry), teller: teller{node: o.node, log: log}, log: log}
	if err := a.install.Start(); err != nil {
		return err
	}
	all, ctx := errgroup.WithContext(ctx)

	var pods node.Pods = noPods{}
	look := make(chan struct{}, 1)
	if !o.withoutAPI {
		api, err := o.api()
		if err != nil {
			return err
		}
		if o.readPods {
			watch, err := newPodWatch(api, o.node, look)
			if err != nil {
				return err
			}
			all.Go(func() error { watch.informer.RunWithContext(ctx); return nil })
			pods = watch
		}
		var stop func()
		a.teller, stop = newTeller(api, o.node, log)
		defer stop()
		gate := &announcement{api: api, node: o.node, log: log}
		all.Go(func() error { gate.keep(ctx, backend); return nil })
		if o.withTaint {
			a.taint = make(chan string, 1)
			t := &nodeTaint{api: api, node: o.node, after: o.taintAfter, log: log}
			all.Go(func() error { t.follow(ctx, a.taint); return nil })
		}
	}
	gates := &node.Gates{Late: a.teller.late, Log: log, Metrics: a.metrics}
	defer gates.Close()
	answers := &node.Answers{Socket: o.socket, Pods: pods, Gates: gates, ExcludeNamespaces: o.excluded, Log: log, Metrics: a.metrics}
	runtime := &containerRuntime{endpoint: o.runtime}
	repairs := &node.Repairs{
		Sandboxes: runtime, Backend: backend, ExcludeNamespaces: o.excluded, Gates: gates, Told: a.teller.repaired, Log: log, Metrics: a.metrics,
	}
	all.Go(func() error { return a.install.Keep(ctx, func(r node.Report, err error) { a.installed(ctx, r, err) }) })
	all.Go(func() error { return answers.Serve(ctx) })
	all.Go(func() error { runtime.follow(ctx, look, log); return nil })
	all.Go(func() error { repairs.Run(ctx, look); return nil })
	defer runtime.Close()
	all.Go(func() error { return a.monitor(ctx, registry) })
	if o.inotify > 0 {
		all.Go(func() error { a.keepInotify(ctx); return nil })
	}
	log.Info("weft-node runs", "node", o.node, "conf", o.confDir, "bin", o.binDir, "socket", o.socket)
	err = all.Wait()
	log.Info("weft-node ends; the node stays as it is")
	return err
}

func (o *options) api() (*corev1client.CoreV1Client, error) {
	var config *rest.Config
	var err error
	if o.kubeconfig != "" {
		config, err = clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	} else {
		config, err = rest.InClusterConfig()
	}
	if err != nil {
		return nil, fmt.Errorf("reach the API server (--kubeconfig, or --without-api): %w", err)
	}
	config.UserAgent = "weft-node"
	config.ContentType = "application/vnd.kubernetes.protobuf"
	config.DisableCompression = true // of each event of a pod: more time on both ends than the node's network saves
	return corev1client.NewForConfig(config)
}

// installed takes one pass's report: is the chain complete, does the binary work, and who has to know.
func (a *agent) installed(ctx context.Context, r node.Report, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Contains(r.Changed, "binary") {
		a.works = false
	}
	if r.Problem == "" && !a.works {
		if err := a.install.Try(ctx); err != nil {
			r.Problem = err.Error()
		} else {
			a.works = true
		}
	}
	if ctx.Err() != nil {
		return
	}
	if r.Soon && a.known {
		return // Keep looks again in a moment
	}
	a.metrics.Installed(r, err)
	if len(r.Changed) > 0 {
		a.log.Info("wrote to the node", "changed", strings.Join(r.Changed, ","), "file", r.File)
	}
	if !slices.Equal(r.Notes, a.noted) {
		a.noted = r.Notes
		for _, n := range r.Notes {
			a.log.Warn("network configuration", "note", n)
		}
	}
	if !a.known || a.problem != r.Problem {
		a.known, a.problem = true, r.Problem
		a.teller.chain(r.File, r.Problem)
	}
	if a.taint != nil {
		select {
		case <-a.taint: // only the latest counts
		default:
		}
		a.taint <- a.problem
	}
}

// keepInotify raises the node's limit, again should somebody (a late sysctl service) lower it.
func (a *agent) keepInotify(ctx context.Context) {
	for {
		have, raised, err := node.RaiseInotify(a.inotifyDir, a.inotify)
		a.metrics.Inotify(have)
		if raised {
			a.log.Info("raised the node's limit of inotify instances per user", "now", have)
		}
		warning := ""
		if err != nil {
			warning = fmt.Sprintf("the node allows %d inotify instances per user, which is enough for %d sidecars, and the limit could not be raised to %d: %v; "+
				"set the sysctl fs.inotify.max_user_instances on the node, or mount the host's /proc/sys/fs/inotify and name it with --inotify-dir", have, have/3, a.inotify, err)
		}
		a.mu.Lock()
		news := warning != "" && warning != a.warning
		a.warning = warning
		a.mu.Unlock()
		if news {
			a.teller.inotifyLow(warning)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Minute):
		}
	}
}

// notReady says why new pods of the mesh cannot start here.
func (a *agent) notReady() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.known {
		return "the node's network configuration was not looked at yet"
	}
	return a.problem
}

func (a *agent) monitor(ctx context.Context, registry *prometheus.Registry) error {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/readyz", func(w http.ResponseWriter, _ *http.Request) {
		if problem := a.notReady(); problem != "" {
			http.Error(w, problem, http.StatusServiceUnavailable)
			return
		}
		a.mu.Lock()
		defer a.mu.Unlock()
		if fmt.Fprintln(w, "ok"); a.warning != "" {
			fmt.Fprintln(w, "warning:", a.warning)
		}
	})
	return serve(ctx, a.monitoring, mux)
}

// serve answers HTTP on an address until ctx ends.
func serve(ctx context.Context, address string, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("--monitoring-address: %w", err)
	}
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); ctx.Err() == nil {
		return err
	}
	return nil
}

// noPods answers for an agent that reads no pods.
type noPods struct{}

func (noPods) Pod(context.Context, string, string, string) (node.Pod, error) {
	return node.Pod{}, errors.New("this node's agent reads no pods from the API server; " +
		"let the container runtime pass annotations to its plugins (containerd from 1.5 on and CRI-O do; Multus does not), or run weft-node with --read-pods (chart value cni.readPods=true)")
}
