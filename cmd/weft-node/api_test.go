package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/weft-mesh/weft/cni/node"
	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/redirect"
)

// These tests use client-go's fake API server: they show what we ask for and what we make of the answers, not that a real one agrees.

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func taintsOf(t *testing.T, c *fake.Clientset) (keys []string) {
	t.Helper()
	n, err := c.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, taint := range n.Spec.Taints {
		keys = append(keys, taint.Key+":"+string(taint.Effect))
	}
	return keys
}

func TestTheTaintFollowsTheChainAndNoOtherTaintIsTouched(t *testing.T) {
	other := corev1.Taint{Key: "gpu", Value: "yes", Effect: corev1.TaintEffectNoExecute}
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{other, {Key: taintKey, Effect: corev1.TaintEffectNoSchedule}}}}
	c := fake.NewClientset(n)
	conflicts := 2
	c.PrependReactor("patch", "nodes", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if !strings.Contains(string(a.(k8stesting.PatchAction).GetPatch()), "resourceVersion") {
			t.Error("a patch that would overwrite somebody else's change")
		}
		if conflicts--; conflicts >= 0 {
			return true, nil, apierrors.NewConflict(corev1.Resource("nodes"), "n1", errors.New("changed"))
		}
		return false, nil, nil
	})
	problems := make(chan string)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	taint := &nodeTaint{api: c.CoreV1(), node: "n1", after: 50 * time.Millisecond, log: quiet()}
	go func() { defer close(done); taint.follow(ctx, problems) }()
	await := func(want ...string) {
		t.Helper()
		kit.Within(t, 10*time.Second, func() string {
			if got := taintsOf(t, c); !slices.Equal(got, want) {
				return strings.Join(got, " ")
			}
			return ""
		})
	}
	problems <- ""
	await("gpu:NoExecute")
	problems <- "10-calico.conflist has no weft-cni entry"
	await("gpu:NoExecute", taintKey+":NoSchedule")
	problems <- ""
	await("gpu:NoExecute")
	// Broken for a moment only.
	before := len(c.Actions())
	for range 5 {
		problems <- "broken"
		problems <- ""
	}
	problems <- ""
	stop()
	<-done
	for _, a := range c.Actions()[before:] {
		if a.GetVerb() == "patch" {
			t.Errorf("a chain that was broken for a moment changed the node: %v", a)
		}
	}
}

func k8sPod(name string, annotations map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: annotations},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "app", Image: strings.Repeat("x", 1000)}}},
	}
}

// listsFirst says that the fake server cannot begin a watch with a list.
type listsFirst struct{ corev1client.PodsGetter }

func (listsFirst) IsWatchListSemanticsUnSupported() bool { return true }

func TestPodsOfThisNodeAreFoundByNameAndUID(t *testing.T) {
	first := k8sPod("cart", map[string]string{redirect.Annotation: "spec", "other": "x"})
	first.UID = "uid-1"
	static := k8sPod("static", map[string]string{redirect.Annotation: "spec", mirror: "hash"})
	c := fake.NewClientset(first, static)
	w, err := newPodWatch(listsFirst{c.CoreV1()}, "n1", make(chan struct{}, 1))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.informer.RunWithContext(ctx) }()
	defer func() { stop(); <-done }()
	kit.Within(t, 10*time.Second, func() string {
		if !w.informer.HasSynced() {
			return "not synced"
		}
		return ""
	})
	find := func(name, uid string) (node.Pod, error) {
		ctx, stop := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer stop()
		return w.Pod(ctx, "shop", name, uid)
	}
	if p, err := find("cart", "uid-1"); err != nil || !p.Injected || p.Redirect != "spec" {
		t.Errorf("%+v %v", p, err)
	}
	if p, err := find("static", "hash"); err != nil || p.Injected {
		t.Errorf("%+v %v: a static pod runs as its file says", p, err)
	}
	if p, err := find("cart", "uid-2"); err == nil || !strings.Contains(err.Error(), "uid-2") {
		t.Errorf("%+v %v: another pod of the same name", p, err)
	}
	if o, ok, _ := w.informer.GetStore().GetByKey("shop/cart"); !ok || len(o.(*corev1.Pod).Spec.Containers) > 0 || len(o.(*corev1.Pod).Annotations) != 1 {
		t.Errorf("kept in memory: %+v", o)
	}
	for _, a := range c.Actions() {
		fields := ""
		switch a := a.(type) {
		case k8stesting.ListAction:
			fields = a.GetListRestrictions().Fields.String()
		case k8stesting.WatchAction:
			fields = a.GetWatchRestrictions().Fields.String()
		}
		if !strings.Contains(fields, "spec.nodeName=n1") {
			t.Errorf("%s %s with field selector %q: other nodes' pods are none of our business", a.GetVerb(), a.GetResource().Resource, fields)
		}
	}
	t.Run("a pod that comes while the plugin waits", func(t *testing.T) {
		late := k8sPod("late", map[string]string{redirect.Annotation: "spec"})
		late.UID = "uid-9"
		go func() { _, _ = c.CoreV1().Pods("shop").Create(ctx, late, metav1.CreateOptions{}) }()
		waiting, stop := context.WithTimeout(t.Context(), 10*time.Second)
		defer stop()
		if p, err := w.Pod(waiting, "shop", "late", "uid-9"); err != nil || p.Name != "late" {
			t.Errorf("%+v %v", p, err)
		}
	})
}

func TestEventsSayWhatHappened(t *testing.T) {
	r := record.NewFakeRecorder(10)
	tell := teller{node: "n1", recorder: r, log: quiet()}
	s := node.Sandbox{Namespace: "shop", Name: "cart", UID: "1"}
	tell.repaired(node.Repair{Sandbox: s, Reason: node.ReasonStart, Took: 1234 * time.Microsecond, Drift: []string{"table inet weft is missing: nothing is captured"}})
	tell.repaired(node.Repair{Sandbox: s, Reason: node.ReasonDrift, Drift: []string{"a", "b", "c", "d", "e"}})
	tell.repaired(node.Repair{Sandbox: s, Reason: node.ReasonDrift, Err: errors.New("operation not permitted")})
	tell.chain("10-calico.conflist", "10-calico.conflist has no weft-cni entry")
	tell.chain("10-calico.conflist", "")
	for _, want := range []string{
		"Normal RedirectRepaired The pod's redirect rules were put right in 1.2ms, without a restart: its network was made without weft-cni",
		"Normal RedirectRepaired The pod's redirect rules were put right in 0s, without a restart: somebody had changed them (a; b; c; and 2 more)",
		"Warning RedirectRepairFailed The pod's traffic does not go through its sidecar, and this could not be repaired: operation not permitted",
		"Warning MeshCNIBroken New pods of the mesh cannot be redirected when they start: 10-calico.conflist has no weft-cni entry",
		"Normal MeshCNIReady weft-cni is the last plugin of 10-calico.conflist",
	} {
		if got := <-r.Events; !strings.HasPrefix(got, want) {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}

func TestTheNodeSaysWhetherItHoldsHooks(t *testing.T) {
	kit.Root(t)
	if gateAnnotation != mesh.NodeStartGate || gateHook != mesh.GateHook {
		t.Errorf("the agent says %s: %s, and weftd looks for %s: %s", gateAnnotation, gateHook, mesh.NodeStartGate, mesh.GateHook)
	}
	c := fake.NewClientset(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", Annotations: map[string]string{"other": "x"}}})
	failures := 1
	c.PrependReactor("patch", "nodes", func(k8stesting.Action) (bool, runtime.Object, error) {
		failures--
		return failures >= 0, nil, apierrors.NewServiceUnavailable("not now")
	})
	annotations := func() map[string]string {
		n, err := c.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return n.Annotations
	}
	backend, err := redirect.Open(redirect.Auto)
	if err != nil {
		t.Fatal(err)
	}
	a := &announcement{api: c.CoreV1(), node: "n1", log: quiet()}
	a.keep(t.Context(), backend)
	if got := annotations(); got[gateAnnotation] != gateHook || got["other"] != "x" {
		t.Errorf("annotations %v", got)
	}
	a.keep(t.Context(), incapable{backend})
	if got := annotations(); len(got) != 1 || got["other"] != "x" {
		t.Errorf("annotations of a node whose kernel lacks what the gate needs: %v", got)
	}
}

// incapable is a kernel that cannot hold requests.
type incapable struct{ redirect.Backend }

func (b incapable) Apply(s redirect.Spec) error {
	if s.Gate != 0 {
		return errors.New("no such match")
	}
	return b.Backend.Apply(s)
}
