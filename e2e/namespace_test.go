package e2e

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
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
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-")
	}
	ns := &Namespace{T: t, Cluster: c, Name: name}
	yaml := "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: " + name + "\n"
	if len(labels) > 0 {
		yaml += "  labels:\n"
		for _, l := range labels {
			k, v, _ := strings.Cut(l, "=")
			yaml += fmt.Sprintf("    %s: %q\n", k, v)
		}
	}
	ns.run(yaml, "apply", "-f", "-")
	t.Cleanup(func() {
		if t.Failed() {
			ns.dump()
		}
		if os.Getenv("WEFT_E2E_KEEP") != "" && t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := c.Run(ctx, "", "delete", "namespace", name); err != nil {
			t.Errorf("cleaning up: %v", err)
		}
	})
	return ns
}

// dump prints what a person would look at first.
func (ns *Namespace) dump() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pods", "-n", ns.Name, "-o", "wide"},
		{"get", "events", "-n", ns.Name},
		{"logs", "-n", "istio-system", "deploy/istiod", "--tail", "30"},
		{"exec", "-n", "istio-system", "deploy/istiod", "--", "curl", "-s", "http://127.0.0.1:15014/debug/problemz", "http://127.0.0.1:15014/debug/rejectz", "http://127.0.0.1:15014/debug/syncz"},
	} {
		out, err := ns.Cluster.Run(ctx, "", args...)
		ns.T.Logf("%s\n%s%v", strings.Join(args, " "), out, err)
	}
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
	var err error
	deadline := time.Now().Add(45 * time.Second)
	for tick := time.NewTicker(200 * time.Millisecond); ; <-tick.C {
		if err = check(); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}
