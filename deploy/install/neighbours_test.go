package install

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chartcommon "helm.sh/helm/v4/pkg/chart/common"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-mesh/weft/e2e/kubernetes"
)

// installIstio makes the releases that Istio's users have: testdata/istio has the names, labels and owners of Istio's charts, and little more.
func installIstio(t *testing.T, c *Cluster, releases ...string) {
	t.Helper()
	for _, name := range releases {
		text, err := os.ReadFile(filepath.Join("testdata", "istio", name+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := c.helmIn(DefaultNamespace)
		if err != nil {
			t.Fatal(err)
		}
		in := action.NewInstall(cfg)
		in.ReleaseName, in.Namespace, in.WaitStrategy, in.DisableOpenAPIValidation = name, DefaultNamespace, kube.HookOnlyStrategy, true
		ch := &chart.Chart{
			Metadata:  &chart.Metadata{APIVersion: "v2", Name: strings.TrimPrefix(name, "istio-"), Version: "1.29.0", Sources: []string{"https://github.com/istio/istio"}},
			Templates: []*chartcommon.File{{Name: "templates/all.yaml", Data: text}},
		}
		if _, err := in.Run(ch, nil); err != nil {
			t.Fatalf("release %s: %v", name, err)
		}
	}
}

// Istio's users come to weft as they come to a new Istio: a second revision, namespace by namespace.
func TestBesideIstio(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	c, err := ConnectTo(api.Config())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, labels := range map[string]map[string]string{
		DefaultNamespace: {}, "shop": {"istio-injection": "enabled"}, "moving": {"istio-injection": "enabled", "istio.io/rev": "weft"},
	} {
		_, err := c.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
		must(t, err)
	}
	installIstio(t, c, "istio-base", "istiod", "istio-cni", "istio-ingressgateway")
	options := Options{Progress: &told{}, Timeout: time.Minute}
	weft := func() *Plan { return plan(t, Input{Revision: "weft"}) }
	precheck := func(p *Plan) []Check {
		t.Helper()
		found, err := c.Precheck(ctx, p)
		must(t, err)
		return found.Checks
	}
	owner := func(crd string) string {
		t.Helper()
		o, err := c.Dynamic.Resource(crdResource).Get(ctx, crd, metav1.GetOptions{})
		must(t, err)
		return o.GetAnnotations()["meta.helm.sh/release-name"]
	}

	t.Run("in its place: refused, and precheck says how else", func(t *testing.T) {
		expectCheck(t, precheck(plan(t, Input{})), Failed, "Deployment istio-system/istiod", "is not overwritten", "--revision weft")
		_, err := c.Install(ctx, plan(t, Input{}), options)
		if err == nil || !strings.Contains(err.Error(), "Deployment istio-system/istiod") || !strings.Contains(err.Error(), "--revision weft") {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("in another namespace: refused without a common authority", func(t *testing.T) {
		apart := func() *Plan { return plan(t, Input{Revision: "weft", Namespace: "weft-system"}) }
		expectCheck(t, precheck(apart()), Failed, "Deployment istio-system/istiod", "istio-ca-root-cert", "cacerts")
		if _, err := c.Install(ctx, apart(), options); err == nil || !strings.Contains(err.Error(), "--istioNamespace istio-system") {
			t.Fatalf("got %v", err)
		}
		if _, err := c.CoreV1().Namespaces().Get(ctx, "weft-system", metav1.GetOptions{}); err == nil {
			t.Error("a refused installation made its namespace")
		}
	})
	t.Run("as a revision: what is Istio's stays Istio's", func(t *testing.T) {
		checks := precheck(weft())
		expectCheck(t, checks, OK, "definitions", "2 definitions", "Helm release istio-system/istio-base")
		expectCheck(t, checks, OK, "control plane istio-system/default", "example.com/pilot:1.29.0", "shop", "istio.io/rev=weft")
		expectCheck(t, checks, OK, "stays", "gateway istio-system/istio-ingressgateway", "Helm release istio-ingressgateway")
		expectCheck(t, checks, Warning, "node agent", "istio-system/istio-cni-node", "excludeNamespaces")
		got, err := c.Install(ctx, weft(), options)
		must(t, err)
		var names []string
		for _, r := range got.Releases {
			names = append(names, r.Name)
		}
		if strings.Join(names, " ") != "weft-base istiod-weft weft-cni" {
			t.Errorf("releases %q", names)
		}
		if o := owner("virtualservices.networking.istio.io"); o != "istio-base" {
			t.Errorf("Istio's definition belongs to %q", o)
		}
		if o := owner("sidecars.networking.istio.io"); o != "weft-base" {
			t.Errorf("a definition that Istio did not have belongs to %q", o)
		}
		hook, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "istiod-default-validator", metav1.GetOptions{})
		must(t, err)
		if s := hook.Webhooks[0].ClientConfig.Service.Name; s != "istiod" || hook.Annotations["meta.helm.sh/release-name"] != "istio-base" {
			t.Errorf("Istio's validator calls %s and belongs to %v", s, hook.Annotations)
		}
		expectCheck(t, precheck(weft()), Warning, "Namespace moving", "the first wins", "istio-injection-")
	})
	t.Run("again changes nothing", func(t *testing.T) {
		again, err := c.Install(ctx, weft(), options)
		must(t, err)
		for _, r := range again.Releases {
			if r.Version != 1 {
				t.Errorf("release %s has version %d", r.Name, r.Version)
			}
		}
	})
	t.Run("verify-install tells the two apart", func(t *testing.T) {
		v, err := c.Verify(ctx, DefaultNamespace, "")
		must(t, err)
		expectCheck(t, v.Checks, Failed, "revision default", "default in istio-system of another mesh")
		all, err := c.Revisions(ctx, "")
		must(t, err)
		for _, r := range all {
			if r.Foreign != (r.Revision == "default") || len(r.Webhooks) != 1 {
				t.Errorf("%+v", r)
			}
		}
	})
	t.Run("removing weft, purge too, leaves Istio whole", func(t *testing.T) {
		r, err := c.PlanRemoval(ctx, DefaultNamespace, "", true)
		must(t, err)
		if strings.Join(r.Foreign, " ") != "istio-system/default" || len(r.Kinds) != 0 || strings.Join(r.Webhooks, " ") != "istio-sidecar-injector-weft" {
			t.Errorf("foreign %q, kinds %q, webhooks %q", r.Foreign, r.Kinds, r.Webhooks)
		}
		must(t, c.Uninstall(ctx, r, UninstallOptions{Timeout: 2 * time.Second, Force: true}))
		_, err = c.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, "istio-sidecar-injector", metav1.GetOptions{})
		must(t, err)
		_, err = c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "istiod-default-validator", metav1.GetOptions{})
		must(t, err)
		if o := owner("virtualservices.networking.istio.io"); o != "istio-base" {
			t.Errorf("Istio's definition belongs to %q", o)
		}
		if _, err := c.AppsV1().DaemonSets(DefaultNamespace).Get(ctx, "istio-cni-node", metav1.GetOptions{}); err != nil {
			t.Error(err)
		}
	})
	t.Run("after Istio: what it left is taken over, objects without a revision are checked again", func(t *testing.T) {
		must(t, func() error { _, err := c.Install(ctx, weft(), options); return err }())
		for _, name := range []string{"istio-ingressgateway", "istio-cni", "istiod", "istio-base"} {
			cfg, err := c.helmIn(DefaultNamespace)
			must(t, err)
			u := action.NewUninstall(cfg)
			u.WaitStrategy = kube.HookOnlyStrategy
			_, err = u.Run(name)
			must(t, err)
		}
		got, err := c.Install(ctx, weft(), options)
		must(t, err)
		if got.Releases[0].Name != "weft-base" || owner("virtualservices.networking.istio.io") != "weft-base" {
			t.Errorf("release %s, owner %s", got.Releases[0].Name, owner("virtualservices.networking.istio.io"))
		}
		hook, err := c.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, "istiod-default-validator", metav1.GetOptions{})
		must(t, err)
		if s := hook.Webhooks[0].ClientConfig.Service.Name; s != "istiod-weft" {
			t.Errorf("objects without a revision are checked by %s", s)
		}
	})
	t.Run("made by istioctl: no releases, and the same answers", func(t *testing.T) {
		r, err := c.PlanRemoval(ctx, DefaultNamespace, "", true)
		must(t, err)
		must(t, c.Uninstall(ctx, r, UninstallOptions{Timeout: 10 * time.Second, Force: true}))
		c.Forget()
		for _, name := range []string{"istio-base", "istiod", "istio-ingressgateway"} {
			text, err := os.ReadFile(filepath.Join("testdata", "istio", name+".yaml"))
			must(t, err)
			objects, err := readObjects(text)
			must(t, err)
			for _, o := range objects {
				applyAsIstioctl(t, c, o)
			}
		}
		expectCheck(t, precheck(plan(t, Input{})), Failed, "Deployment istio-system/istiod", "is not overwritten")
		checks := precheck(weft())
		expectCheck(t, checks, OK, "definitions", "istioctl or kubectl")
		expectCheck(t, checks, OK, "stays", "gateway istio-system/istio-ingressgateway", "istioctl or kubectl")
		_, err = c.Install(ctx, weft(), options)
		must(t, err)
		if o := owner("virtualservices.networking.istio.io"); o != "" {
			t.Errorf("istioctl's definition belongs to %q", o)
		}
	})
}

// applyAsIstioctl does what istioctl does with its objects.
func applyAsIstioctl(t *testing.T, c *Cluster, o Tree) {
	t.Helper()
	resource, err := c.resourceOf(o, DefaultNamespace)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	name, _ := get(o, "metadata", "name")
	force := true
	if _, err := resource.Patch(t.Context(), name.(string), types.ApplyPatchType, text, metav1.PatchOptions{FieldManager: "istio-operator", Force: &force}); err != nil {
		t.Fatal(err)
	}
}
