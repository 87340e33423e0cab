package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestS62DiscoverySelectorsLeaveNamespacesOut: for proxies, the services and rules of an excluded namespace do not
// exist; a label brings them back at once.
func TestS62DiscoverySelectorsLeaveNamespacesOut(t *testing.T) {
	ns := alone(t)
	ns.Deploy(client)
	in, left := NewNamespace(t, ns.Cluster, "in"), NewNamespace(t, ns.Cluster, "left-out", "istio-exclude=true")
	for _, other := range []*Namespace{in, left} {
		other.Apply(App{Name: "echo"}.service())
	}
	knows := func(other *Namespace, want bool) {
		t.Helper()
		Eventually(t, fmt.Sprintf("the sidecar knows services of %s: %v", other.Name, want), func() error {
			ns.Call(fromClient, "http://"+other.host("echo")+"/") // nobody answers; but who learns on demand asks for it
			r := ns.Call(fromClient, "http://127.0.0.1:15000/clusters")[0]
			if got := strings.Contains(r.Body, "outbound|80||"+other.host("echo")); r.Status != 200 || got != want {
				return fmt.Errorf("%v (status %d)", got, r.Status)
			}
			return nil
		})
	}
	knows(in, true)
	knows(left, true)
	ns.withMeshConfig("discoverySelectors: [{matchExpressions: [{key: istio-exclude, operator: NotIn, values: ['true']}]}]")
	knows(left, false)
	knows(in, true)
	ns.run("", "label", "namespace", left.Name, "istio-exclude-")
	knows(left, true)
	ns.run("", "label", "namespace", in.Name, "istio-exclude=true")
	knows(in, false)
}
