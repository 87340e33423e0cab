package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kubernetes/node"
)

// TestTrafficOutlivesTheAPIServer: it answers nobody for a minute, which is worse than refusing connections.
func TestTrafficOutlivesTheAPIServer(t *testing.T) {
	c := onKubernetes(t, "the sandbox has no API server apart from itself")
	ns := alone(t)
	ns.Deploy(App{Name: "echo", Version: "v1"}, App{Name: "echo", Version: "v2"})
	ns.Apply(subsets("echo", []string{"v1", "v2"}))
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 50, 50)))
	dir := c.dir()
	if _, err := node.Describe(dir); err != nil {
		t.Skipf("the API server of this cluster cannot be stopped from here: %v", err)
	}
	// exec goes through the API server, so the load is a Job and its log is read later.
	ns.Apply(job("load", "containers: ["+container("app", `call, "-lean", "-for", "75s", "-rate", "40", "-c", "4", "http://echo/"`)+"]"))
	Eventually(t, "the load runs", func() error { return ns.ready("app=load", 1) })
	resume := func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := node.Start(ctx, dir, "kube-apiserver"); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(resume) // whatever happens
	if err := node.Pause(t.Context(), dir, "kube-apiserver"); err != nil {
		t.Fatal(err)
	}
	<-time.After(60 * time.Second) // the outage itself
	resume()
	Eventually(t, "the API server answers", func() error {
		_, err := ns.TryKubectl("get", "pods", "--request-timeout=5s")
		return err
	})
	ns.Kubectl("wait", "--for=condition=complete", "job/load", "--timeout=90s")
	results, err := ns.lastJSON("job/load", "-c", "app")
	if err != nil {
		t.Fatal(err)
	}
	noneFailed(t, "60 s without the API server", results, 1000)

	// What changed is seen again, and new pods are made.
	ns.Deploy(client)
	ns.Apply(virtualService("echo", fmt.Sprintf(weighted, 0, 100)))
	ns.onlyVersion("v2", 20, "http://echo/")
}

// TestPodsAreRedirectedWithoutTheNodeAgent: it prepares nodes; pods do not wait for it.
func TestPodsAreRedirectedWithoutTheNodeAgent(t *testing.T) {
	onKubernetes(t, "the sandbox has no node agent")
	ns := alone(t)
	ns.Apply(strict)
	system := system(ns)
	agents := func() int {
		return len(system.pods("k8s-app=istio-cni-node"))
	}
	before := agents()
	if before == 0 {
		t.Fatal("no node agent runs")
	}
	system.Kubectl("patch", "daemonset", "weft-node", "--type=merge", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"weft.dev/none":"here"}}}}}`)
	defer func() {
		system.Kubectl("patch", "daemonset", "weft-node", "--type=merge", "-p", `{"spec":{"template":{"spec":{"nodeSelector":{"weft.dev/none":null}}}}}`)
		system.Kubectl("rollout", "status", "daemonset/weft-node", "--timeout=90s")
		Eventually(t, "the node agents are back", func() error {
			if n := agents(); n != before {
				return fmt.Errorf("%d of %d", n, before)
			}
			return nil
		})
	}()
	Eventually(t, "no node agent runs", func() error {
		if n := agents(); n > 0 {
			return fmt.Errorf("%d run", n)
		}
		return nil
	})
	ns.Deploy(App{Name: "echo"}, client)
	if got := ns.readyColumn("echo"); got != "2/2" {
		t.Errorf("READY is %s, want 2/2", got)
	}
	outside(t).refused("http://" + ns.host("echo") + "/")
	Eventually(t, "mutual TLS", func() error {
		return hasCaller(ns.Call(fromClient, "http://echo/")[0], "spiffe://cluster.local/ns/"+ns.Name+"/sa/client")
	})
	if out := ns.Kubectl("get", "events"); strings.Contains(out, "FailedCreatePodSandBox") {
		t.Error(errors.New(out))
	}
}
