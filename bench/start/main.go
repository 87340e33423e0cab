// Command start measures what the mesh adds to the start of a pod, on a real cluster that has it installed: from the request
// that creates the pod until the API server says Ready. Pods without the mesh, with the postStart hook and with the startup probe take
// turns, so that all see the same machine.
//
//	go run ./bench/start [-n 20] [-image IMAGE] [-gates none,hook,probe] [-rest 3s] [-o json]
//
// Two more kinds tell where the time goes: "second" is a pod without the mesh that has a sidecar which does nothing, and "ungated" has the mesh's proxy,
// and nothing waits for it.
//
// The cluster is that of $KUBECONFIG or ~/.kube/config. It exits with status 1 when the hook costs more than -most over no
// mesh (median). It makes namespaces of its own, with Pod Security "restricted", and removes them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

type options struct {
	n      int
	image  string
	gates  string
	most   time.Duration
	rest   time.Duration
	output string
}

func main() {
	var o options
	flag.IntVar(&o.n, "n", 20, "pods of each kind")
	flag.StringVar(&o.image, "image", "registry.k8s.io/pause:3.10", "image of the app; it is on the node already, or the first pod waits for it and is not counted")
	flag.StringVar(&o.gates, "gates", "none,hook,probe", "kinds of pods, of none, second, ungated, hook, probe: none is without the mesh, and must be the first")
	flag.DurationVar(&o.most, "most", 220*time.Millisecond, "most that the hook may add to the median without the mesh")
	flag.DurationVar(&o.rest, "rest", 3*time.Second, "between two pods: the API server forgets a pod before its node has taken the network and the mounts of it down")
	flag.StringVar(&o.output, "o", "", "json for figures that a program reads")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "start: "+err.Error())
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) (err error) {
	gates := strings.Split(o.gates, ",")
	if o.n < 1 || gates[0] != "none" {
		return errors.New("want -n of 1 and more, and -gates that begin with none")
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return fmt.Errorf("no cluster: %w; set KUBECONFIG", err)
	}
	config.QPS = -1 // what the client would wait for its own rate limit would be measured too
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	c := cluster{client: client, image: o.image}
	if err := c.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close(context.WithoutCancel(ctx))) }()

	starts := map[string][]start{}
	for i := range o.n + 1 {
		for _, gate := range gates {
			s, err := c.start(ctx, gate, i)
			if err != nil {
				return fmt.Errorf("pod %d with %s: %w", i, gate, err)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(o.rest):
			}
			if i > 0 { // the first pulls images and fills caches
				starts[gate] = append(starts[gate], s)
			}
		}
		fmt.Fprintf(os.Stderr, "\r%d/%d ", i, o.n)
	}
	fmt.Fprintln(os.Stderr)
	var results []result
	for _, gate := range gates {
		results = append(results, summarize(gate, starts[gate]))
	}
	if err := print(results, o.output); err != nil {
		return err
	}
	for _, r := range results {
		if over := r.Median - results[0].Median; r.Gate == "hook" && over > float64(o.most.Milliseconds()) {
			return fmt.Errorf("the hook adds %.0f ms to the median without the mesh, and at most %v is the goal", over, o.most)
		}
	}
	return nil
}

// result is about the pods of one kind, in milliseconds from the request to Ready.
type result struct {
	Gate   string  `json:"gate"`
	N      int     `json:"n"`
	Median float64 `json:"medianMs"`
	P95    float64 `json:"p95Ms"`
	Min    float64 `json:"minMs"`
	Max    float64 `json:"maxMs"`
	// Admitted is the median of the request itself, the webhook included; App of the time until the app's container runs.
	Admitted float64 `json:"admittedMs"`
	App      float64 `json:"appMs"`
}

func summarize(gate string, starts []start) result {
	of := func(f func(start) time.Duration) []float64 {
		ms := make([]float64, len(starts))
		for i, s := range starts {
			ms[i] = float64(f(s).Microseconds()) / 1000
		}
		slices.Sort(ms)
		return ms
	}
	ready := of(func(s start) time.Duration { return s.ready })
	return result{
		Gate: gate, N: len(starts),
		Median: quantile(ready, 0.5), P95: quantile(ready, 0.95), Min: ready[0], Max: ready[len(ready)-1],
		Admitted: quantile(of(func(s start) time.Duration { return s.admitted }), 0.5),
		App:      quantile(of(func(s start) time.Duration { return s.app }), 0.5),
	}
}

// quantile of sorted values, between neighbours in proportion.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

func print(results []result, output string) error {
	switch output {
	case "json":
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(results)
	case "":
	default:
		return fmt.Errorf("-o %q: want json", output)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "GATE\tN\tADMITTED\tAPP RUNS\tREADY MEDIAN\tP95\tMIN\tMAX\tOVER NONE\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%+.0f\t\n", r.Gate, r.N, r.Admitted, r.App, r.Median, r.P95, r.Min, r.Max, r.Median-results[0].Median)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Println("milliseconds from the request that creates the pod")
	return nil
}
