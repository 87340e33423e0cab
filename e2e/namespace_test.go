package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Namespace is where one scenario lives. Everything in it goes with the test.
type Namespace struct {
	T       testing.TB
	Cluster *Cluster
	Name    string
}

// NewNamespace makes a namespace named after the test, with labels ("istio-injection=enabled").
func NewNamespace(t testing.TB, c *Cluster, suffix string, labels ...string) *Namespace {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(strings.TrimPrefix(t.Name(), "Test")))
	if suffix != "" {
		name += "-" + suffix
	}
	ns := createNamespace(t, c, name, labels)
	t.Cleanup(func() {
		if t.Failed() {
			ns.dump()
		}
		if os.Getenv("WEFT_E2E_KEEP") != "" && t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := c.DeleteNamespace(ctx, ns.Name); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
	})
	return ns
}

// namespaceUntilEnd makes a namespace that goes when all scenarios are over.
func namespaceUntilEnd(t *testing.T, c *Cluster, name string, labels ...string) *Namespace {
	t.Helper()
	ns := createNamespace(t, c, name, labels)
	if c.Kubernetes() { // a sandbox goes as a whole
		deferToEnd(func(ctx context.Context) error { return c.DeleteNamespace(ctx, ns.Name) })
	}
	return ns
}

func createNamespace(t testing.TB, c *Cluster, name string, labels []string) *Namespace {
	t.Helper()
	if most := 63 - len(run) - 1; len(name) > most {
		name = strings.TrimRight(name[:most], "-")
	}
	ns := &Namespace{T: t, Cluster: c, Name: name + "-" + run}
	yaml := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + ns.Name + "\n"
	if len(labels) > 0 {
		yaml += "  labels:\n"
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			yaml += fmt.Sprintf("    %s: %q\n", k, v)
		}
	}
	ns.run(yaml, "apply", "-f", "-")
	return ns
}

// dump prints what a person would look at first.
func (ns *Namespace) dump() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	show := func(args ...string) {
		out, err := ns.Cluster.Run(ctx, "", args...)
		if err != nil {
			out += err.Error()
		}
		ns.T.Logf("%s\n%s", strings.Join(args, " "), out)
	}
	show("get", "pods", "-n", ns.Name, "-o", "wide")
	show("get", "events", "-n", ns.Name)
	pods, err := ns.Cluster.Pods(ctx, ns.Name, "")
	if err != nil {
		ns.T.Log(err)
	}
	for _, p := range pods {
		if !isReady(&p) {
			show("describe", "pod", "-n", ns.Name, p.Name)
		}
		for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
			show("logs", "-n", ns.Name, p.Name, "-c", c.Name, "--tail", "8")
		}
	}
	show("logs", "-n", "istio-system", "deploy/istiod", "--tail", "20")
	for _, page := range []string{"problemz", "rejectz", "syncz"} {
		out, err := ns.Cluster.DebugPage(ctx, page)
		if err != nil {
			out += err.Error()
		}
		ns.T.Logf("weftd's %s: %s", page, out)
	}
}

// isReady says whether the pod's condition Ready is true.
func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func (ns *Namespace) run(stdin string, args ...string) string {
	ns.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := ns.Cluster.Run(ctx, stdin, args...)
	if err != nil {
		ns.T.Fatal(err)
	}
	return out
}

// Kubectl runs a verb in the namespace and returns its output; a failure ends the test.
func (ns *Namespace) Kubectl(args ...string) string {
	ns.T.Helper()
	return ns.run("", append([]string{"-n", ns.Name}, args...)...)
}

// TryKubectl is Kubectl for verbs that may fail.
func (ns *Namespace) TryKubectl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return ns.Cluster.Run(ctx, "", append([]string{"-n", ns.Name}, args...)...)
}

// Apply applies YAML to the namespace and deletes it again when the test is over.
func (ns *Namespace) Apply(yaml string) {
	ns.T.Helper()
	ns.run(yaml, "-n", ns.Name, "apply", "-f", "-")
}

// ApplyWhile applies YAML to any namespace (mesh-wide policy) and deletes it at the end of the test.
func (ns *Namespace) ApplyWhile(yaml string) {
	ns.T.Helper()
	ns.run(yaml, "apply", "-f", "-")
	ns.T.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := ns.Cluster.Run(ctx, yaml, "delete", "-f", "-"); err != nil {
			ns.T.Errorf("cleaning up: %v", err)
		}
	})
}

// Deploy applies the apps and waits until they are ready.
func (ns *Namespace) Deploy(apps ...App) {
	ns.T.Helper()
	var docs []string
	for _, a := range apps {
		docs = append(docs, a.YAML())
	}
	ns.Apply(strings.Join(docs, "---\n"))
	for _, a := range apps {
		ns.WaitRollout(a.Deployment())
	}
}

// WaitRollout waits until a Deployment is rolled out.
func (ns *Namespace) WaitRollout(deployment string) {
	ns.T.Helper()
	ns.Kubectl("rollout", "status", "deploy/"+deployment, "--timeout=90s")
}

// Call runs `testapp call` in a pod of the deployment and returns what each request saw.
func (ns *Namespace) Call(from string, args ...string) Results {
	ns.T.Helper()
	rs, err := ns.TryCall(from, args...)
	if err != nil {
		ns.T.Fatal(err)
	}
	return rs
}

// TryCall is Call for use inside Eventually.
func (ns *Namespace) TryCall(from string, args ...string) (Results, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return ns.Cluster.Call(ctx, ns.Name, "deploy/"+from, args...)
}

// Eventually waits until check returns nil; the deadline is generous because it only costs when something is broken.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	within(t, 45*time.Second, what, check)
}

// within is Eventually with another deadline.
func within(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for tick := time.NewTicker(200 * time.Millisecond); ; <-tick.C {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
