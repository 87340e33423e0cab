package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/e2e/kit"
)

// weft runs our CLI against the cluster.
func (ns *Namespace) weft(args ...string) (string, error) {
	ns.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	return ns.Cluster.BesideKubectl(ctx, "", append([]string{kit.Program(ns.T, "weft")}, args...)...)
}

// TestRevisionsRunSideBySide: a second control plane is installed, one namespace moves to it and comes back,
// the other never notices, and the two talk all the time.
func TestRevisionsRunSideBySide(t *testing.T) {
	onKubernetes(t, "a sandbox has one control plane")
	ns := alone(t)
	moving := NewNamespace(t, ns.Cluster, "moving", injected, restricted)
	ns.Deploy(App{Name: "echo"}, client)
	moving.Deploy(App{Name: "echo"})
	ns.Apply(strict)
	moving.Apply(strict)
	for _, n := range []*Namespace{ns, moving} {
		n.revisionIs("echo", "default")
	}
	system := system(ns)
	before := system.pods("app=istiod,istio.io/rev=default")[0].Name

	if out, err := ns.weft("install", "-y", "--revision", "canary", "--set", "components.ingressGateways[0].enabled=false"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := ns.weft("uninstall", "-y", "--revision", "canary"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
	results := ns.load(20*time.Second, "http://"+moving.host("echo")+"/")
	move := func(label, revision string) {
		t.Helper()
		ns.run("", append([]string{"label", "namespace", moving.Name, "--overwrite"}, strings.Fields(label)...)...)
		moving.Kubectl("rollout", "restart", "deploy/echo-v1")
		moving.WaitRollout("echo-v1")
		moving.revisionIs("echo", revision)
	}
	move("istio-injection- istio.io/rev=canary", "canary")
	Eventually(t, "mutual TLS over the revisions", func() error {
		return hasCaller(ns.Call(fromClient, "http://"+moving.host("echo")+"/")[0], "spiffe://cluster.local/ns/"+ns.Name+"/sa/client")
	})
	move("istio-injection=enabled istio.io/rev-", "default")
	noneFailed(t, "a namespace moved to another revision and back", results(), 300)
	ns.revisionIs("echo", "default")
	if after := system.pods("app=istiod,istio.io/rev=default")[0].Name; after != before {
		t.Errorf("the first control plane was restarted: %s, then %s", before, after)
	}
}

// revisionIs waits until all sidecars of an app are of a revision: the webhook's, and the control plane that they are connected to.
func (ns *Namespace) revisionIs(app, revision string) {
	ns.T.Helper()
	Eventually(ns.T, app+" is of revision "+revision, func() error {
		pods := ns.pods("app=" + app)
		if len(pods) == 0 {
			return errors.New("it has no pods")
		}
		for _, p := range pods {
			if err := ns.ofRevision(&p, revision); err != nil {
				return fmt.Errorf("pod %s: %w", p.Name, err)
			}
		}
		return nil
	})
}

func (ns *Namespace) ofRevision(pod *corev1.Pod, revision string) error {
	if status := pod.Annotations["sidecar.istio.io/status"]; !strings.Contains(status, fmt.Sprintf("%q:%q", "revision", revision)) {
		return fmt.Errorf("injected with %s", status)
	}
	rs, err := ns.Cluster.Call(ns.T.Context(), ns.Name, pod.Name, "http://127.0.0.1:15000/clusters")
	if err != nil {
		return err
	}
	want := "istiod." // the name that the proxy dials
	if revision != "default" {
		want = "istiod-" + revision + "."
	}
	for line := range strings.Lines(rs[0].Body) {
		if strings.HasPrefix(line, "xds-grpc::") && strings.Contains(line, "::hostname::"+want) {
			return nil
		}
	}
	return fmt.Errorf("not connected to %s", want)
}
