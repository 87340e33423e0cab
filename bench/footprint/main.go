// Command footprint measures what the control plane and the node agent cost, on a real cluster that has them installed: CPU and
// memory while nothing happens, while pods with sidecars start, and while those run.
//
//	go run ./bench/footprint [-pods 50] [-for 60s] [-o json]
//
// The cluster is that of $KUBECONFIG or ~/.kube/config. The figures are kubelet's (stats/summary): CPU time of each container and its
// resident memory. It makes a namespace of its own and removes it.
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

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

const (
	meshNamespace = "istio-system"
	namespace     = "weft-bench-footprint"
)

type options struct {
	pods    int
	each    time.Duration
	patient time.Duration
	image   string
	output  string
}

func main() {
	var o options
	flag.IntVar(&o.pods, "pods", 50, "pods with sidecars")
	flag.DurationVar(&o.each, "for", 60*time.Second, "how long each state is looked at; kubelet's figures are 10 to 20 s apart")
	flag.DurationVar(&o.patient, "start-timeout", 10*time.Minute, "how long the pods may take to become Ready")
	flag.StringVar(&o.image, "image", "registry.k8s.io/pause:3.10", "image of the app")
	flag.StringVar(&o.output, "o", "", "json for figures that a program reads")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "footprint: "+err.Error())
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) (err error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return fmt.Errorf("no cluster: %w; set KUBECONFIG", err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	m := meter{client: client}
	var rows []row
	state := func(name string, f func() error) error {
		before, err := m.read(ctx)
		if err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
		after, err := m.read(ctx)
		if err != nil {
			return err
		}
		rows = append(rows, difference(name, before, after)...)
		return nil
	}
	pause := func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(o.each):
			return nil
		}
	}
	say := func(what string) { fmt.Fprintln(os.Stderr, what) }
	say(fmt.Sprintf("idle, %v", o.each))
	if err := state("idle", pause); err != nil {
		return err
	}
	say(fmt.Sprintf("%d pods start", o.pods))
	defer func() { err = errors.Join(err, remove(context.WithoutCancel(ctx), client)) }()
	if err := state("pods start", func() error { return o.start(ctx, client) }); err != nil {
		return err
	}
	say(fmt.Sprintf("%d pods run, %v", o.pods, o.each))
	if err := state("pods run", pause); err != nil {
		return err
	}
	return print(rows, o.output)
}

func (o options) start(ctx context.Context, client *kubernetes.Clientset) error {
	ctx, cancel := context.WithTimeout(ctx, o.patient)
	defer cancel()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{"istio-injection": "enabled"}}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return err
	}
	replicas, labels := int32(o.pods), map[string]string{"app": "footprint"}
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "footprint", Labels: labels}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{"sidecar.istio.io/proxyCPU": "1m", "sidecar.istio.io/proxyMemory": "1Mi"}},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: o.image}}},
		},
	}}
	deployments := client.AppsV1().Deployments(namespace)
	if _, err := deployments.Create(ctx, deployment, metav1.CreateOptions{}); err != nil {
		return err
	}
	for {
		d, err := deployments.Get(ctx, "footprint", metav1.GetOptions{})
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "\r%d/%d ready ", d.Status.ReadyReplicas, o.pods)
		if d.Status.ReadyReplicas == replicas {
			fmt.Fprintln(os.Stderr)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d pods are Ready after %v", d.Status.ReadyReplicas, o.pods, o.patient)
		case <-time.After(time.Second):
		}
	}
}

func remove(ctx context.Context, client *kubernetes.Clientset) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return client.CoreV1().Namespaces().Delete(ctx, namespace, metav1.DeleteOptions{})
}

// usage is of one container, as kubelet read it at a time of its own.
type usage struct {
	at       time.Time
	cpu      time.Duration // since its start
	resident uint64        // bytes
}

type meter struct{ client *kubernetes.Clientset }

// read asks the kubelets for the containers of the mesh's namespace, gateways excepted.
func (m meter) read(ctx context.Context) (map[string]usage, error) {
	nodes, err := m.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	out := map[string]usage{}
	for _, n := range nodes.Items {
		raw, err := m.client.CoreV1().RESTClient().Get().Resource("nodes").Name(n.Name).SubResource("proxy").Suffix("stats/summary").
			Param("only_cpu_and_memory", "true"). // the rest costs kubelet more, and fails on nodes whose disks it does not know
			DoRaw(ctx)
		if err != nil {
			return nil, fmt.Errorf("kubelet of node %s: %w", n.Name, err)
		}
		if err := containers(raw, out); err != nil {
			return nil, fmt.Errorf("kubelet of node %s: %w", n.Name, err)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no kubelet knows a container of namespace %s: is the mesh installed? (weft verify-install)", meshNamespace)
	}
	return out, nil
}

// containers reads kubelet's summary (Kubernetes: k8s.io/kubelet/pkg/apis/stats/v1alpha1, Summary), of which this much is used.
func containers(raw []byte, into map[string]usage) error {
	var summary struct {
		Pods []struct {
			PodRef     struct{ Name, Namespace string }
			Containers []struct {
				Name string
				CPU  *struct {
					Time                 time.Time
					UsageCoreNanoSeconds *uint64
				}
				Memory *struct {
					RSSBytes        *uint64
					WorkingSetBytes *uint64
				}
			}
		}
	}
	if err := json.Unmarshal(raw, &summary); err != nil {
		return fmt.Errorf("stats/summary: %w", err)
	}
	for _, p := range summary.Pods {
		if p.PodRef.Namespace != meshNamespace {
			continue
		}
		for _, c := range p.Containers {
			if c.Name == "istio-proxy" || c.CPU == nil || c.CPU.UsageCoreNanoSeconds == nil || c.Memory == nil {
				continue
			}
			u := usage{at: c.CPU.Time, cpu: time.Duration(*c.CPU.UsageCoreNanoSeconds)}
			switch {
			case c.Memory.RSSBytes != nil && *c.Memory.RSSBytes > 0:
				u.resident = *c.Memory.RSSBytes
			case c.Memory.WorkingSetBytes != nil:
				u.resident = *c.Memory.WorkingSetBytes
			}
			into[p.PodRef.Name] = u
		}
	}
	return nil
}

// row is one pod in one state.
type row struct {
	State      string  `json:"state"`
	Pod        string  `json:"pod"`
	Seconds    float64 `json:"seconds"` // between kubelet's two readings
	CPUSeconds float64 `json:"cpuSeconds"`
	Percent    float64 `json:"cpuPercent"` // of one core
	ResidentMB float64 `json:"residentMB"` // at the end
}

func difference(state string, before, after map[string]usage) []row {
	var rows []row
	for pod, a := range after {
		b, there := before[pod]
		if !there {
			continue // restarted meanwhile
		}
		r := row{State: state, Pod: pod, Seconds: a.at.Sub(b.at).Seconds(), CPUSeconds: (a.cpu - b.cpu).Seconds(), ResidentMB: float64(a.resident) / 1e6}
		if r.Seconds > 0 {
			r.Percent = 100 * r.CPUSeconds / r.Seconds
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.Pod, b.Pod) })
	return rows
}

func print(rows []row, output string) error {
	switch output {
	case "json":
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(rows)
	case "":
	default:
		return fmt.Errorf("-o %q: want json", output)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tPOD\tSECONDS\tCPU s\tOF ONE CORE\tRESIDENT")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.2f\t%.2f %%\t%.0f MB\n", r.State, r.Pod, r.Seconds, r.CPUSeconds, r.Percent, r.ResidentMB)
	}
	return w.Flush()
}
