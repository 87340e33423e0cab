package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/e2e/kit"
)

// traffic are requests that one kind of user makes all the time.
type traffic struct {
	name string
	from *Namespace
	args []string
}

// through makes all the traffic from before a change until after it; every request must have been answered by the app. It returns how many there were.
func through(t *testing.T, what string, all []traffic, change func()) (requests int) {
	t.Helper()
	began := time.Now()
	type outcome struct {
		results Results
		err     error
	}
	over := make(chan struct{})
	outcomes := make([]chan outcome, len(all))
	for i, flow := range all {
		outcomes[i] = make(chan outcome, 1)
		go func() {
			var o outcome
			for last := false; !last && o.err == nil; {
				select {
				case <-over: // once more: what was replaced may go on for a while
					last = true
				default:
				}
				var some Results
				some, o.err = flow.from.TryCall(fromClient, append([]string{"-lean", "-for", "4s", "-rate", "30", "-c", "3"}, flow.args...)...)
				o.results = append(o.results, some...)
			}
			outcomes[i] <- o
		}()
	}
	func() {
		defer close(over) // also when the change ends the test
		change()
	}()
	for i, flow := range all {
		o := <-outcomes[i]
		if o.err != nil {
			t.Errorf("%s: %s: %v", what, flow.name, o.err)
		}
		failed := Results{}
		for _, r := range o.results {
			if r.Error != "" || r.Version == "" || r.Status != 200 && !strings.HasPrefix(flow.args[len(flow.args)-1], "grpc:") {
				failed = append(failed, r)
			}
		}
		if len(failed) > 0 || len(o.results) < 100 {
			first, _ := json.Marshal(failed[:min(len(failed), 3)])
			t.Errorf("%s: %s: %d of %d requests failed (and 100 at least are wanted), the first ones: %s", what, flow.name, len(failed), len(o.results), first)
		}
		requests += len(o.results)
	}
	t.Logf("%s: %d requests in %s", what, requests, time.Since(began).Round(time.Second))
	return requests
}

// TestUpgradeLosesNoRequest: the mesh is upgraded to another version in place and brought back, then the other version is put beside it and everything moves there:
// the gateway, a namespace by its tag, and the old control plane goes. All the while requests pass through sidecars, with mutual TLS, and the gateway.
//
// WEFT_E2E_NEXT is the other version's program; its image must be on the nodes. The mesh that is left behind is that version's.
func TestUpgradeLosesNoRequest(t *testing.T) {
	next := os.Getenv("WEFT_E2E_NEXT")
	if next == "" {
		t.Skip("needs a cluster with two versions of the mesh's image, and WEFT_E2E_NEXT: `make e2e` runs it on one of its clusters")
	}
	onKubernetes(t, "a sandbox has no releases")
	ns, plain := alone(t), outside(t)
	withIngress(ns)
	ns.Deploy(App{Name: "echo", Replicas: 2, PreStop: 1}, client)
	ns.Apply(strict + "---\n" + echoAt("upgraded.example.com"))
	all := []traffic{
		{"kept connections", ns, []string{"http://echo/"}},
		{"new connections", ns, []string{"-no-keepalive", "http://echo/"}},
		{"gRPC", ns, []string{"grpc://echo:9000"}},
		{"through the gateway", plain, []string{"-no-keepalive", "-H", "Host: upgraded.example.com", ingress + "/"}},
	}
	for _, flow := range all {
		Eventually(t, flow.name, func() error {
			if rs, err := flow.from.TryCall(fromClient, flow.args...); err != nil || rs[0].Version == "" {
				return fmt.Errorf("%+v %v", rs, err)
			}
			return nil
		})
	}

	u := upgrade{t, ns, plain}
	this, other := kit.Program(t, "weft"), next
	thisVersion, otherVersion := u.version(this), u.version(other)
	if thisVersion == otherVersion {
		t.Fatalf("both programs are of version %s", thisVersion)
	}
	u.runs(map[string]string{"default": thisVersion})
	requests := through(t, "upgraded in place", all, func() {
		u.weft(other, "upgrade", "-y")
		u.runs(map[string]string{"default": otherVersion})
		u.restart("echo-v1")
	})
	requests += through(t, "brought back", all, func() {
		u.weft(this, "upgrade", "-y")
		u.runs(map[string]string{"default": thisVersion})
	})

	requests += through(t, "another revision beside, a namespace moved by its tag", all, func() {
		u.weft(other, "upgrade", "-y", "--set", "revision=next")
		u.runs(map[string]string{"default": thisVersion, "next": otherVersion})
		u.weft(other, "tag", "set", "prod", "--revision", "next")
		ns.run("", "label", "namespace", ns.Name, "--overwrite", "istio-injection-", "istio.io/rev=prod")
		u.restart("echo-v1")
		ns.revisionIs("echo", "next")
	})
	u.restart(client.Deployment()) // which is where the requests are made
	ns.revisionIs("client", "next")
	requests += through(t, "the gateway moved, the old revision uninstalled", all, func() {
		u.weft(other, "upgrade", "-y", "--set", "revision=next", "--move-gateways")
		u.weft(other, "uninstall", "-y")
		u.runs(map[string]string{"next": otherVersion})
	})
	t.Logf("%s to %s, back, and by revision: %d requests", thisVersion, otherVersion, requests)
}

// upgrade is what an upgrade does and looks at.
type upgrade struct {
	t         *testing.T
	ns, plain *Namespace
}

func (u upgrade) weft(program string, args ...string) string {
	u.t.Helper()
	out, err := u.ns.Cluster.BesideKubectl(u.t.Context(), "", append([]string{program}, args...)...)
	if err != nil {
		u.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func (u upgrade) version(program string) string {
	u.t.Helper()
	return strings.TrimSpace(u.weft(program, "version", "--remote=false", "-o", "short"))
}

func (u upgrade) restart(deployment string) {
	u.t.Helper()
	u.ns.Kubectl("rollout", "restart", "deploy/"+deployment)
	u.ns.WaitRollout(deployment)
}

// runs waits until these are the control planes, revision to version, no pod of another is left, and every proxy is connected to one of theirs.
func (u upgrade) runs(want map[string]string) {
	u.t.Helper()
	var said struct {
		Cluster []struct{ Component, Revision, Version string }
	}
	if err := json.Unmarshal([]byte(u.weft(kit.Program(u.t, "weft"), "version", "--remote", "-o", "json")), &said); err != nil {
		u.t.Fatal(err)
	}
	have := map[string]string{}
	for _, v := range said.Cluster {
		if v.Component == "weftd" {
			have[v.Revision] = v.Version
		}
	}
	if fmt.Sprint(have) != fmt.Sprint(want) {
		u.t.Fatalf("weft version: the control planes are %v, want %v", have, want)
	}
	Eventually(u.t, "the pods of the control planes are of their versions", func() error {
		for _, p := range system(u.ns).pods("app=istiod") {
			if revision, image := p.Labels["istio.io/rev"], p.Spec.Containers[0].Image; !strings.HasSuffix(image, ":"+want[revision]) {
				return fmt.Errorf("pod %s of revision %s runs %s, want %s", p.Name, revision, image, want[revision])
			}
		}
		return nil
	})
	everyProxyConnected(u.plain)
}
