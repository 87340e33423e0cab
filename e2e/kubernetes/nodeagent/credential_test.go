package nodeagent

import (
	"context"
	"slices"
	"strings"
	"testing"

	authnv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	account = "system:serviceaccount:" + system + ":weft-node"
	taint   = "cni.istio.io/not-ready"
)

// TestWhatAStolenTokenOfTheAgentCanDo: a node may be lost to an attacker, and the agent's token with it. It must be worth little beyond that node.
func TestWhatAStolenTokenOfTheAgentCanDo(t *testing.T) {
	c := open(t)
	c.install(nil)
	for _, q := range []struct {
		verb, resource, name string
		want                 bool
	}{
		{"get", "nodes", "", true},   // to patch the taint
		{"patch", "nodes", "", true}, // held to its own node, and to the taint, by the policy below
		{"create", "events", "", true},
		{"patch", "events", "", true},
		{"list", "pods", "", false},
		{"watch", "pods", "", false},
		{"get", "pods", "", false},
		{"create", "pods", "", false},
		{"delete", "pods", "", false},
		{"patch", "pods", "", false},
		{"create", "pods/exec", "", false},
		{"create", "pods/eviction", "", false},
		{"list", "secrets", "", false},
		{"get", "secrets", "istio-ca-secret", false},
		{"list", "configmaps", "", false},
		{"list", "nodes", "", false},
		{"update", "nodes", "", false},
		{"delete", "nodes", "", false},
		{"patch", "nodes/status", "", false},
		{"get", "nodes/proxy", "", false},
		{"list", "events", "", false},
		{"delete", "events", "", false},
		{"create", "serviceaccounts/token", "", false},
		{"patch", "daemonsets.apps", "weft-node", false},
		{"create", "certificatesigningrequests.certificates.k8s.io", "", false},
		{"impersonate", "users", "", false},
		{"escalate", "clusterroles.rbac.authorization.k8s.io", "", false},
	} {
		if got := c.can(account, q.verb, q.resource, q.name); got != q.want {
			t.Errorf("kubectl auth can-i %s %s %s --as=%s: %t, want %t", q.verb, q.resource, q.name, account, got, q.want)
		}
	}

	// A token of the agent's pod, as it lies in the pod.
	own := c.agentToken(c.agentPod())
	ctx := context.Background()
	other := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "another-node"}, Spec: corev1.NodeSpec{Unschedulable: true, Taints: []corev1.Taint{{Key: "mine", Effect: corev1.TaintEffectNoSchedule}}}}
	if _, err := c.api.CoreV1().Nodes().Create(ctx, other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.api.CoreV1().Nodes().Delete(ctx, other.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	}()
	foreign := []corev1.Taint{{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectPreferNoSchedule}}
	c.patchNode(c.api, c.Node, taints(foreign...))
	defer c.patchNode(c.api, c.Node, taints())
	broken := corev1.Taint{Key: taint, Effect: corev1.TaintEffectNoSchedule}
	// An API server acts by a new policy a moment after it was made, and refuses nothing until then.
	c.within(patience, func() string {
		_, err := own.CoreV1().Nodes().Patch(ctx, other.Name, types.MergePatchType, []byte(taints(append(other.Spec.Taints, broken)...)), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil {
			return "the chart's policy is not in force"
		}
		return ""
	})
	for _, p := range []struct {
		name, node, patch string
		refused           string // part of the message; "" means that it is allowed
	}{
		{"sets its taint", c.Node, taints(append(foreign, broken)...), ""},
		{"removes its taint", c.Node, taints(foreign...), ""},
		{"taints another node", other.Name, taints(append(other.Spec.Taints, broken)...), "only the node that its pod runs on (" + c.Node + "), not another-node"},
		{"makes another node schedulable", other.Name, `{"spec":{"unschedulable":false}}`, "only the node that its pod runs on"},
		{"removes somebody's taint", c.Node, taints(), "only the taint " + taint},
		{"evicts everything from its node", c.Node, taints(append(foreign, corev1.Taint{Key: taint, Effect: corev1.TaintEffectNoExecute})...), "only the taint " + taint},
		{"labels its node", c.Node, `{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`, "may change nothing of a node but"},
		{"annotates its node", c.Node, `{"metadata":{"annotations":{"x":"y"}}}`, "may change nothing of a node but"},
		{"says that its node holds hooks", c.Node, `{"metadata":{"annotations":{"weft.dev/start-gate":"hook"}}}`, ""},
		{"says something else there", c.Node, `{"metadata":{"annotations":{"weft.dev/start-gate":"x"}}}`, "may change nothing of a node but"},
		{"cordons its node", c.Node, `{"spec":{"unschedulable":true}}`, "may change nothing of a node but"},
	} {
		_, err := own.CoreV1().Nodes().Patch(ctx, p.node, types.MergePatchType, []byte(p.patch), metav1.PatchOptions{})
		switch {
		case p.refused == "" && err != nil:
			t.Errorf("an agent that %s: %v", p.name, err)
		case p.refused != "" && (err == nil || !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), p.refused)):
			t.Errorf("an agent that %s is told %v, want a refusal with %q", p.name, err, p.refused)
		}
	}

	// The same account's token without a pod is no node's.
	loose := c.token(authnv1.TokenRequestSpec{})
	if _, err := loose.CoreV1().Nodes().Patch(ctx, c.Node, types.MergePatchType, []byte(taints(append(foreign, broken)...)), metav1.PatchOptions{}); err == nil || !strings.Contains(err.Error(), "not bound to a pod") {
		t.Errorf("a token that is bound to no pod: %v", err)
	}
	// And the chart's option says what it costs.
	c.install(map[string]any{"readPods": true})
	for _, verb := range []string{"list", "watch"} {
		if !c.can(account, verb, "pods", "") {
			t.Errorf("with cni.readPods it cannot %s pods", verb)
		}
	}
	if c.can(account, "get", "pods", "x") || c.can(account, "delete", "pods", "x") {
		t.Error("cni.readPods allows more than list and watch")
	}
}

// can is `kubectl auth can-i VERB RESOURCE[.GROUP][/SUBRESOURCE] [NAME] --as=USER`, in all namespaces.
func (c *cluster) can(user, verb, resource, name string) bool {
	c.t.Helper()
	resource, sub, _ := strings.Cut(resource, "/")
	resource, group, _ := strings.Cut(resource, ".")
	a, err := c.api.AuthorizationV1().SubjectAccessReviews().Create(context.Background(), &authzv1.SubjectAccessReview{Spec: authzv1.SubjectAccessReviewSpec{
		User: user, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + system, "system:authenticated"},
		ResourceAttributes: &authzv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Subresource: sub, Name: name},
	}}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return a.Status.Allowed
}

// agentToken is a client with a token like the one in the agent's pod.
func (c *cluster) agentToken(p *corev1.Pod) *kubernetes.Clientset {
	c.t.Helper()
	return c.token(authnv1.TokenRequestSpec{BoundObjectRef: &authnv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name, UID: p.UID}})
}

func (c *cluster) token(s authnv1.TokenRequestSpec) *kubernetes.Clientset {
	c.t.Helper()
	r, err := c.api.CoreV1().ServiceAccounts(system).CreateToken(context.Background(), "weft-node", &authnv1.TokenRequest{Spec: s}, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(c.config)
	config.BearerToken = r.Status.Token
	api, err := kubernetes.NewForConfig(config)
	if err != nil {
		c.t.Fatal(err)
	}
	return api
}

// taints is a merge patch.
func taints(list ...corev1.Taint) string {
	var out []string
	for _, t := range list {
		out = append(out, `{"key":"`+t.Key+`","value":"`+t.Value+`","effect":"`+string(t.Effect)+`"}`)
	}
	return `{"spec":{"taints":[` + strings.Join(out, ",") + `]}}`
}

func (c *cluster) patchNode(api kubernetes.Interface, name, patch string) {
	c.t.Helper()
	if _, err := api.CoreV1().Nodes().Patch(context.Background(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// tainted says whether the node has the agent's taint.
func (c *cluster) tainted() bool {
	c.t.Helper()
	n, err := c.api.CoreV1().Nodes().Get(context.Background(), c.Node, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == taint })
}
