package deploy_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/kube"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/e2e/kubernetes"
)

// helm does what the command of that name does.
type helm struct {
	t          testing.TB
	config     *action.Configuration
	namespace  string
	serverSide bool // Helm 4's way; Helm 3 merges by itself
}

func newHelm(t testing.TB, api *kubernetes.APIServer, namespace string, serverSide bool) *helm {
	t.Helper()
	flags := genericclioptions.NewConfigFlags(false)
	path := api.Kubeconfig("admin")
	flags.KubeConfig, flags.Namespace = &path, &namespace
	flags.WrapConfigFn = func(c *rest.Config) *rest.Config { c.QPS = -1; return c }
	h := &helm{t: t, config: action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler)), namespace: namespace, serverSide: serverSide}
	if err := h.config.Init(flags, namespace, ""); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *helm) install(name, release, values string) {
	h.t.Helper()
	c, err := deploy.Chart(name)
	if err != nil {
		h.t.Fatal(err)
	}
	h.installChart(c, release, values)
}

func (h *helm) installChart(c *chart.Chart, release, values string) {
	h.t.Helper()
	i := action.NewInstall(h.config)
	i.ReleaseName, i.Namespace, i.ServerSideApply, i.WaitStrategy, i.Timeout = release, h.namespace, h.serverSide, kube.HookOnlyStrategy, time.Minute
	if _, err := i.Run(c, parse(h.t, values)); err != nil {
		h.t.Fatalf("helm install %s: %v", release, err)
	}
}

func (h *helm) upgrade(name, release, values string) {
	h.t.Helper()
	c, err := deploy.Chart(name)
	if err != nil {
		h.t.Fatal(err)
	}
	u := action.NewUpgrade(h.config)
	u.Namespace, u.WaitStrategy, u.Timeout = h.namespace, kube.HookOnlyStrategy, time.Minute
	if _, err := u.Run(release, c, parse(h.t, values)); err != nil {
		h.t.Fatalf("helm upgrade %s: %v", release, err)
	}
}

func (h *helm) uninstall(release string) {
	h.t.Helper()
	u := action.NewUninstall(h.config)
	u.WaitStrategy, u.Timeout = kube.HookOnlyStrategy, time.Minute
	if _, err := u.Run(release); err != nil {
		h.t.Fatalf("helm uninstall %s: %v", release, err)
	}
}

func read[T any, P interface {
	*T
	client.Object
}](t testing.TB, c client.Client, namespace, name string) *T {
	t.Helper()
	var o T
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: namespace, Name: name}, P(&o)); err != nil {
		t.Fatal(err)
	}
	return &o
}

// Starting an API server costs more than all of these tests: they share one, and leave nothing but the definitions.
func TestHelm(t *testing.T) {
	api := kubernetes.StartAPIServer(t)
	c := api.Client()
	if err := c.Create(t.Context(), namespaceObject(namespace, "")); err != nil {
		t.Fatal(err)
	}
	for _, way := range []struct {
		name       string
		serverSide bool
	}{{"Helm 3 merges by itself", false}, {"Helm 4 lets the API server merge", true}} {
		t.Run(way.name, func(t *testing.T) {
			for name, test := range map[string]func(*testing.T, *helm, client.Client){
				"definitions are upgraded, and stay when the release goes": definitionsAreUpgraded,
				"an upgrade leaves what weftd wrote into webhooks":         weftdsFieldsStay,
				"two revisions stand side by side":                         twoRevisions,
			} {
				t.Run(name, func(t *testing.T) { test(t, newHelm(t, api, namespace, way.serverSide), c) })
			}
		})
	}
}

func definitionsAreUpgraded(t *testing.T, h *helm, c client.Client) {
	const name = "virtualservices.networking.istio.io"
	shortNames := func() string {
		d := read[apiextensionsv1.CustomResourceDefinition](t, c, "", name)
		if d.DeletionTimestamp != nil {
			t.Fatal("the definition is being deleted, and with it all VirtualServices")
		}
		return strings.Join(d.Spec.Names.ShortNames, " ")
	}
	// The chart as a release before might have had it.
	before, err := deploy.Chart(deploy.Base)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range before.Files {
		f.Data = bytes.Replace(f.Data, []byte("    shortNames:\n    - vs\n"), nil, 1)
	}
	h.installChart(before, "istio-base", "{}")
	if got := shortNames(); got != "" {
		t.Fatalf("the older chart has short names %q", got)
	}
	h.upgrade(deploy.Base, "istio-base", "{}")
	if got := shortNames(); got != "vs" {
		t.Errorf("after the upgrade VirtualService has short names %q", got)
	}
	h.uninstall("istio-base")
	shortNames()
	h.install(deploy.Base, "istio-base", "{}") // what stayed is taken up again
	h.uninstall("istio-base")
}

func weftdsFieldsStay(t *testing.T, h *helm, c client.Client) {
	h.install(deploy.Base, "istio-base", "base: {enableCRDTemplates: false}")
	h.install(deploy.Istiod, "istiod", "{}")
	defer h.uninstall("istio-base")
	defer h.uninstall("istiod")
	bundle := []byte("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n")
	validators := []string{"istiod-default-validator", "istio-validator-istio-system"}
	for _, name := range validators {
		v := read[admissionv1.ValidatingWebhookConfiguration](t, c, "", name)
		if *v.Webhooks[0].FailurePolicy != admissionv1.Ignore || v.Webhooks[0].ClientConfig.CABundle != nil {
			t.Fatalf("%s begins with %s, %q", name, *v.Webhooks[0].FailurePolicy, v.Webhooks[0].ClientConfig.CABundle)
		}
		fail := admissionv1.Fail
		v.Webhooks[0].FailurePolicy, v.Webhooks[0].ClientConfig.CABundle = &fail, bundle
		if err := c.Update(t.Context(), v, client.FieldOwner("weftd")); err != nil {
			t.Fatal(err)
		}
	}
	m := read[admissionv1.MutatingWebhookConfiguration](t, c, "", "istio-sidecar-injector")
	for i := range m.Webhooks {
		m.Webhooks[i].ClientConfig.CABundle = bundle
	}
	if err := c.Update(t.Context(), m, client.FieldOwner("weftd")); err != nil {
		t.Fatal(err)
	}
	h.upgrade(deploy.Base, "istio-base", "base: {enableCRDTemplates: false}")
	h.upgrade(deploy.Istiod, "istiod", "pilot: {replicaCount: 3, autoscaleEnabled: false}\nsidecarInjectorWebhook: {timeoutSeconds: 7}")
	for _, name := range validators {
		v := read[admissionv1.ValidatingWebhookConfiguration](t, c, "", name)
		if *v.Webhooks[0].FailurePolicy != admissionv1.Fail || !bytes.Equal(v.Webhooks[0].ClientConfig.CABundle, bundle) {
			t.Errorf("%s has %s, %q after the upgrade", name, *v.Webhooks[0].FailurePolicy, v.Webhooks[0].ClientConfig.CABundle)
		}
	}
	m = read[admissionv1.MutatingWebhookConfiguration](t, c, "", "istio-sidecar-injector")
	for _, w := range m.Webhooks {
		if !bytes.Equal(w.ClientConfig.CABundle, bundle) || *w.TimeoutSeconds != 7 {
			t.Errorf("%s has %q, %d s after the upgrade", w.Name, w.ClientConfig.CABundle, *w.TimeoutSeconds)
		}
	}
}

func twoRevisions(t *testing.T, h *helm, c client.Client) {
	h.install(deploy.Base, "istio-base", "base: {enableCRDTemplates: false}")
	h.install(deploy.Istiod, "istiod", "{}")
	defer h.uninstall("istio-base")
	defer h.uninstall("istiod")
	h.install(deploy.Istiod, "istiod-canary", "revision: canary\nrevisionTags: [prod, default]")
	h.install(deploy.Gateway, "istio-ingressgateway", "revision: prod")
	defer h.uninstall("istio-ingressgateway")
	b := read[rbacv1.RoleBinding](t, c, namespace, "istio-ingressgateway")
	var accounts []string
	for _, s := range b.Subjects {
		accounts = append(accounts, s.Name)
	}
	if got := strings.Join(accounts, " "); got != "istiod istiod-prod istiod-canary" {
		t.Errorf("the gateway's certificates may be read by %s", got)
	}
	// The tag took the older labels over; the default's release gives them up with its next upgrade.
	h.upgrade(deploy.Istiod, "istiod", "{}")
	m := read[admissionv1.MutatingWebhookConfiguration](t, c, "", "istio-sidecar-injector")
	for _, w := range m.Webhooks {
		if !strings.HasPrefix(w.Name, "rev.") {
			t.Errorf("%s and the tag's webhook of that name would both inject", w.Name)
		}
	}
	h.uninstall("istiod-canary")
	h.upgrade(deploy.Istiod, "istiod", "{}")
	if m = read[admissionv1.MutatingWebhookConfiguration](t, c, "", "istio-sidecar-injector"); len(m.Webhooks) != 4 {
		t.Errorf("the default revision did not take the older labels back: %d webhooks", len(m.Webhooks))
	}
	read[corev1.ConfigMap](t, c, namespace, "istio")
}
