package install

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"helm.sh/helm/v4/pkg/release/common"

	"github.com/weft-mesh/weft/e2e/kubernetes"
)

// told collects what a Progress is told.
type told struct {
	Silent
	notes []string
}

func (p *told) Note(text string) { p.notes = append(p.notes, text) }

// newCA is a certificate authority that nobody knows.
func newCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// expectCheck wants a check with this status, about this object, that says these words.
func expectCheck(t *testing.T, checks []Check, status Status, object string, words ...string) {
	t.Helper()
	for _, k := range checks {
		if k.Status != status || !strings.Contains(k.Object, object) {
			continue
		}
		text := k.Code + " " + k.Message + " " + k.Remedy
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) }) {
			return
		}
	}
	t.Errorf("no %s about %q with %q in:", status, object, words)
	for _, k := range checks {
		t.Logf("  %+v", k)
	}
}

// The API server is real; nothing runs pods, so readiness is the native node's business (make e2e).
func TestAnAPIServerBeforeDuringAndAfterTheMesh(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	c, err := ConnectTo(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	options := Options{Progress: &told{}, Timeout: time.Minute}
	demo := func() *Plan { return plan(t, Input{Sets: []string{"profile=demo"}}) }
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	precheck := func(p *Plan) []Check {
		t.Helper()
		found, err := c.Precheck(ctx, p)
		must(t, err)
		return found.Checks
	}
	verify := func(revision string) []Check {
		t.Helper()
		c.Forget()
		v, err := c.Verify(ctx, DefaultNamespace, revision)
		must(t, err)
		return v.Checks
	}
	expect := func(checks []Check, status Status, object string, words ...string) {
		t.Helper()
		expectCheck(t, checks, status, object, words...)
	}

	t.Run("precheck of an empty cluster", func(t *testing.T) {
		checks := precheck(demo())
		expect(checks, OK, "Kubernetes version", "v1.")
		expect(checks, OK, "permissions")
		expect(checks, OK, "definitions", "none")
		expect(checks, OK, "control planes", "none")
		expect(checks, Failed, "nodes", "has none")
		expect(verify(""), Failed, "revision default", "weft install")
	})
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{
		NodeInfo:   corev1.NodeSystemInfo{KubeletVersion: "v1.28.15", OperatingSystem: "linux", Architecture: "amd64", KernelVersion: "6.18.0"},
		Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
	}}
	_, err = c.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{})
	must(t, err)
	_, err = c.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
	must(t, err)
	t.Run("what a node can do, and a network that needs a setting", func(t *testing.T) {
		_, err := c.CoreV1().ConfigMaps("kube-system").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cilium-config"}, Data: map[string]string{"cni-exclusive": "true"}}, metav1.CreateOptions{})
		must(t, err)
		checks := precheck(demo())
		expect(checks, OK, "nodes (1)")
		expect(checks, Failed, "Node n1", "v1.28.15", "native sidecars")
		expect(checks, Failed, "Cilium", "cni.exclusive=false")
		node.Status.NodeInfo.KubeletVersion = "v1.36.3"
		_, err = c.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{})
		must(t, err)
		must(t, c.CoreV1().ConfigMaps("kube-system").Delete(ctx, "cilium-config", metav1.DeleteOptions{}))
	})
	t.Run("an injector that was left behind", func(t *testing.T) {
		fail, none := admissionv1.Fail, admissionv1.SideEffectClassNone
		_, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(ctx, &admissionv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: "istio-sidecar-injector-old", Labels: map[string]string{"app": "sidecar-injector"}},
			Webhooks: []admissionv1.MutatingWebhook{{Name: "x.istio.io", AdmissionReviewVersions: []string{"v1"}, FailurePolicy: &fail, SideEffects: &none,
				ClientConfig: admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "gone", Name: "istiod"}}}},
		}, metav1.CreateOptions{})
		must(t, err)
		expect(precheck(demo()), Failed, "istio-sidecar-injector-old", "IST0139", "gone/istiod", "kubectl delete")
		must(t, c.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(ctx, "istio-sidecar-injector-old", metav1.DeleteOptions{}))
	})
	t.Run("somebody without rights", func(t *testing.T) {
		config := api.Config()
		config.Impersonate.UserName = "nobody"
		poor, err := ConnectTo(config)
		must(t, err)
		found := &Prechecks{}
		must(t, poor.checkPermissions(ctx, found, demo()))
		expect(found.Checks, Failed, "permissions", "IST0141", "create deployments.apps in istio-system")
	})
	t.Run("a dry run changes nothing", func(t *testing.T) {
		dry := options
		dry.DryRun = true
		_, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: DefaultNamespace}}, metav1.CreateOptions{})
		must(t, err)
		_, err = c.Install(ctx, demo(), dry)
		must(t, err)
		if defs, err := c.definitions(ctx, DefaultNamespace); err != nil || len(defs.mine)+len(defs.loose) > 0 {
			t.Fatalf("a dry run made %v, %v", defs, err)
		}
	})
	t.Run("a namespace that would not let the node agent in", func(t *testing.T) {
		label := func(v string) {
			patch := fmt.Sprintf(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":%s}}}`, v)
			_, err := c.CoreV1().Namespaces().Patch(ctx, DefaultNamespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
			must(t, err)
		}
		label(`"restricted"`)
		if _, err := c.Install(ctx, demo(), options); err == nil || !strings.Contains(err.Error(), "enforce=privileged") {
			t.Fatalf("got %v", err)
		}
		expect(precheck(demo()), Failed, "Namespace istio-system", "enforce=privileged")
		label("null")
	})
	t.Run("an object of somebody else", func(t *testing.T) {
		_, err := c.CoreV1().ServiceAccounts(DefaultNamespace).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "istiod"}}, metav1.CreateOptions{})
		must(t, err)
		if _, err := c.Install(ctx, demo(), options); err == nil || !strings.Contains(err.Error(), `ServiceAccount "istiod"`) || !strings.Contains(err.Error(), "--take-ownership") {
			t.Fatalf("got %v", err)
		}
		must(t, c.CoreV1().ServiceAccounts(DefaultNamespace).Delete(ctx, "istiod", metav1.DeleteOptions{}))
	})
	var first *Result
	t.Run("it goes on where it stopped", func(t *testing.T) {
		first, err = c.Install(ctx, demo(), options)
		must(t, err)
		if len(first.Releases) != 5 {
			t.Errorf("%d releases", len(first.Releases))
		}
		state, err := c.recorded(ctx, DefaultNamespace, "")
		must(t, err)
		if v, _ := get(state.Object, "spec", "profile"); v != "demo" {
			t.Errorf("recorded profile is %v", v)
		}
	})
	t.Run("again changes nothing", func(t *testing.T) {
		again, err := c.Install(ctx, demo(), options)
		must(t, err)
		for i, r := range again.Releases {
			if r.Version != first.Releases[i].Version {
				t.Errorf("release %s has version %d after %d", r.Name, r.Version, first.Releases[i].Version)
			}
		}
	})
	t.Run("an installation that was killed is gone on with", func(t *testing.T) {
		cfg, err := c.helmIn(DefaultNamespace)
		must(t, err)
		rel, err := last(cfg, "istiod")
		must(t, err)
		rel.SetStatus(common.StatusPendingUpgrade, "killed")
		rel.Info.LastDeployed = time.Now().Add(-2 * abandoned)
		must(t, cfg.Releases.Update(rel))
		expect(verify(""), Failed, "Helm release istiod", "interrupted")
		_, err = c.Install(ctx, demo(), options)
		must(t, err)
	})
	t.Run("verify-install finds what is changed, missing, and not trusted", func(t *testing.T) {
		_, err := c.CoreV1().Services(DefaultNamespace).Patch(ctx, "istiod", types.JSONPatchType, []byte(`[{"op":"replace","path":"/spec/selector/app","value":"other"}]`), metav1.PatchOptions{})
		must(t, err)
		must(t, c.Dynamic.Resource(crdResource).Delete(ctx, "sidecars.networking.istio.io", metav1.DeleteOptions{}))
		_, err = c.CoreV1().ConfigMaps(DefaultNamespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "istio-ca-root-cert"}, Data: map[string]string{"root-cert.pem": string(newCA(t))}}, metav1.CreateOptions{})
		must(t, err)
		hooks := c.AdmissionregistrationV1().MutatingWebhookConfigurations()
		hook, err := hooks.Get(ctx, "istio-sidecar-injector", metav1.GetOptions{})
		must(t, err)
		for i := range hook.Webhooks {
			hook.Webhooks[i].ClientConfig.CABundle = newCA(t)
		}
		_, err = hooks.Update(ctx, hook, metav1.UpdateOptions{})
		must(t, err)
		checks := verify("")
		expect(checks, Warning, "Service istio-system/istiod", "spec.selector.app", "other")
		expect(checks, Failed, "CustomResourceDefinition sidecars.networking.istio.io", "does not exist", "weft install")
		expect(checks, Failed, "MutatingWebhookConfiguration istio-sidecar-injector", "not the mesh's authority")
		expect(checks, Failed, "ValidatingWebhookConfiguration istiod-default-validator", "not written")
		expect(checks, Failed, "injection", "cannot call the webhook")
		expect(checks, Failed, "Deployment istio-system/istiod", "no pods")

		_, err = c.Install(ctx, demo(), options)
		must(t, err)
		checks = verify("")
		expect(checks, OK, "Service istio-system/istiod")
		expect(checks, OK, "CustomResourceDefinition sidecars.networking.istio.io")
	})
	t.Run("a node without the chain", func(t *testing.T) {
		node.Spec.Taints = []corev1.Taint{{Key: nodeTaint, Effect: corev1.TaintEffectNoSchedule}}
		_, err := c.CoreV1().Nodes().Patch(ctx, "n1", types.MergePatchType, []byte(`{"spec":{"taints":[{"key":"`+nodeTaint+`","effect":"NoSchedule"}]}}`), metav1.PatchOptions{})
		must(t, err)
		_, err = c.CoreV1().Events("default").Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Name: "n1.1"}, InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: "n1"},
			Type: "Warning", Reason: "MeshCNIBroken", Message: "10-x.conflist: weft-cni is not the last plugin", LastTimestamp: metav1.Now()}, metav1.CreateOptions{})
		must(t, err)
		checks := verify("")
		expect(checks, Failed, "Node n1", "10-x.conflist: weft-cni is not the last plugin")
		expect(checks, OK, "start gate", "startup probe", "node n1 lacks the annotation weft.dev/start-gate: hook")
		_, err = c.CoreV1().Nodes().Patch(ctx, "n1", types.MergePatchType, []byte(`{"metadata":{"annotations":{"weft.dev/start-gate":"hook"}}}`), metav1.PatchOptions{})
		must(t, err)
		expect(verify(""), OK, "start gate", "without delay")
	})
	t.Run("a second control plane, tags, and the first one's gateways", func(t *testing.T) {
		up, err := c.PlanUpgrade(ctx, Input{Sets: []string{"revision=1-20"}})
		must(t, err)
		if !up.Recorded || up.From != "" || len(up.Beside) != 1 {
			t.Errorf("the plan: recorded %t, from %q, beside %v", up.Recorded, up.From, up.Beside)
		}
		if v, _ := get(up.Tree, "spec", "meshConfig", "accessLogFile"); v != "/dev/stdout" {
			t.Errorf("what was installed is forgotten: %v", v)
		}
		got, err := c.Install(ctx, up.Plan, options)
		must(t, err)
		if len(got.Kept) != 2 {
			t.Errorf("kept %q", got.Kept)
		}
		all, err := c.Revisions(ctx, "")
		must(t, err)
		if len(all) != 2 {
			t.Errorf("revisions: %+v", all)
		}
		tag, err := c.MakeTag(ctx, "prod", "1-20")
		must(t, err)
		must(t, c.SetTag(ctx, tag, false))
		moved, err := c.MakeTag(ctx, "prod", "default")
		must(t, err)
		if err := c.SetTag(ctx, moved, false); err == nil || !strings.Contains(err.Error(), "--overwrite") {
			t.Errorf("a tag was moved unasked: %v", err)
		}
		if _, err := c.MakeTag(ctx, "1-20", "default"); err == nil {
			t.Error("a tag has a revision's name")
		}
		tags, err := c.Tags(ctx)
		must(t, err)
		if len(tags) != 1 || tags[0].Revision != "1-20" {
			t.Errorf("tags: %+v", tags)
		}
		asDefault, err := c.MakeTag(ctx, "default", "1-20")
		must(t, err)
		must(t, c.SetTag(ctx, asDefault, false))
		own, err := c.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, "istio-sidecar-injector", metav1.GetOptions{})
		must(t, err)
		for _, h := range own.Webhooks {
			if strings.HasPrefix(h.Name, "namespace.") || strings.HasPrefix(h.Name, "object.") {
				t.Errorf("%s still takes istio-injection=enabled, so pods are injected twice", h.Name)
			}
		}
	})
	t.Run("what an uninstallation takes, and what it leaves", func(t *testing.T) {
		one, err := c.PlanRemoval(ctx, DefaultNamespace, "1-20", false)
		must(t, err)
		if strings.Join(one.Releases, " ") != "istio-system/istiod-1-20" || strings.Join(one.Stays, " ") != "default" {
			t.Errorf("releases %q, stays %q", one.Releases, one.Stays)
		}
		must(t, c.Uninstall(ctx, one, UninstallOptions{Timeout: 20 * time.Second}))
		if tags, err := c.Tags(ctx); err != nil || len(tags) != 0 {
			t.Errorf("tags of a control plane that is gone: %+v, %v", tags, err)
		}
		if _, err := c.PlanRemoval(ctx, DefaultNamespace, "1-20", false); err == nil || !strings.Contains(err.Error(), "revision default") {
			t.Errorf("removed twice: %v", err)
		}
		all, err := c.PlanRemoval(ctx, DefaultNamespace, "", true)
		must(t, err)
		if len(all.Releases) != 5 || len(all.Kinds) != 16 {
			t.Errorf("releases %q, kinds %q", all.Releases, all.Kinds)
		}
		err = c.Uninstall(ctx, all, UninstallOptions{Timeout: 2 * time.Second})
		if err == nil || !strings.Contains(err.Error(), "--force") {
			t.Fatalf("no agent undid anything, and nobody says so: %v", err)
		}
		must(t, c.Uninstall(ctx, all, UninstallOptions{Timeout: 2 * time.Second, Force: true}))
		if defs, err := c.definitions(ctx, DefaultNamespace); err != nil || len(defs.mine)+len(defs.loose) > 0 {
			t.Errorf("left: %+v, %v", defs, err)
		}
	})
}
