package nodeagent

import (
	"context"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestPodsWithTheirOwnUsersAreRedirectedAndRepaired: the network namespace of a pod with hostUsers: false belongs to the pod's user namespace. Plugin and agent reach
// it from the node's.
func TestPodsWithTheirOwnUsersAreRedirectedAndRepaired(t *testing.T) {
	c := open(t)
	n, err := c.api.CoreV1().Nodes().Get(context.Background(), c.Node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(n.Status.RuntimeHandlers, func(h corev1.NodeRuntimeHandler) bool {
		return h.Name == "" && h.Features != nil && h.Features.UserNamespaces != nil && *h.Features.UserNamespaces
	}) {
		t.Skip("kubelet says that this node's runtime has no user namespaces: they need containerd 2 with runc 1.2")
	}
	ns := c.namespace()
	own := func(name string) *corev1.Pod {
		no := false
		p := c.app(ns, name)
		p.Spec.HostUsers = &no
		return p
	}
	early := c.start(own("early"))
	c.sees(early, outside)
	c.install(nil)
	c.sees(early, nothing) // repaired
	late := c.start(withSidecar(own("late")))
	c.sees(late, taken)
	c.never(late)
	c.command("nsenter", "--net="+c.netns(late), "nft", "delete", "table", "inet", "weft")
	c.event(ns, late.Name, "RedirectRepaired", "somebody had changed them")
	if c.sees(late, taken); c.restarts(late) != 0 {
		t.Error("it was restarted")
	}
}
