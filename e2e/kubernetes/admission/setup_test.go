package admission

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	registrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/deploy"
	"github.com/weft-mesh/weft/e2e/kit"
	"github.com/weft-mesh/weft/e2e/kubernetes"
	"github.com/weft-mesh/weft/webhook"
)

func TestMain(m *testing.M) { os.Exit(kit.PrivateNetwork(m)) }

// cluster is an API server that calls our webhook, and possibly others.
type cluster struct {
	t        *testing.T
	client   *clientset.Clientset
	injector *webhook.Server
	ours     *httptest.Server
	calls    atomic.Int32 // of our webhook
	warnings warnings
}

// warnings are what kubectl would print.
type warnings struct {
	mu   sync.Mutex
	seen []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen = append(w.seen, text)
}

func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.seen
	w.seen = nil
	return out
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	api := kubernetes.StartAPIServer(t)
	c := &cluster{t: t}
	config := rest.CopyConfig(api.Config())
	config.WarningHandler = &c.warnings
	var err error
	if c.client, err = clientset.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	c.injector, err = webhook.New(webhook.Config{
		Options:   webhook.Options{StartGate: webhook.GateHook},
		Namespace: func(string) (map[string]string, bool) { return nil, false }, // as old as can be: the selectors decide
		Log:       slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.ours = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.calls.Add(1)
		c.injector.ServeHTTP(w, r)
	}))
	c.namespace("istio-system", nil)
	c.namespace("on", map[string]string{"istio-injection": "enabled"})
	c.namespace("off", nil)
	c.namespace("restricted", map[string]string{"istio-injection": "enabled", "pod-security.kubernetes.io/enforce": "restricted"})
	c.register()
	return c
}

func serve(t *testing.T, h http.Handler) *httptest.Server {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	return s
}

func clientConfig(s *httptest.Server, path string) registrationv1.WebhookClientConfig {
	url := s.URL + path
	return registrationv1.WebhookClientConfig{
		URL:      &url,
		CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}),
	}
}

// register installs the chart's webhooks; only the address is this test's.
func (c *cluster) register() {
	c.t.Helper()
	rendered, err := deploy.Render("istiod", deploy.Release{Name: "istiod", Namespace: "istio-system"}, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	found := 0
	for _, document := range rendered.Documents {
		if document.Kind != "MutatingWebhookConfiguration" {
			continue
		}
		var w registrationv1.MutatingWebhookConfiguration
		if err := sigsyaml.Unmarshal([]byte(document.YAML), &w); err != nil {
			c.t.Fatal(err)
		}
		found++
		for i := range w.Webhooks {
			h := &w.Webhooks[i]
			if h.SideEffects == nil || *h.SideEffects != registrationv1.SideEffectClassNone {
				c.t.Errorf("webhook %s: sideEffects %v: the API server would not call it for dry runs", h.Name, h.SideEffects)
			}
			h.ClientConfig = clientConfig(c.ours, *h.ClientConfig.Service.Path)
		}
		if _, err := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Create(c.t.Context(), &w, metav1.CreateOptions{}); err != nil {
			c.t.Fatal(err)
		}
	}
	if found != 1 {
		c.t.Fatalf("%d MutatingWebhookConfigurations in the chart, want one", found)
	}
	// The API server follows its webhooks by a watch.
	eventually(c.t, "the webhook is called", func() bool {
		pod, err := c.create("on", plainPod("first"), metav1.DryRunAll)
		return err == nil && proxyOf(pod) != nil
	})
}

func (c *cluster) namespace(name string, labels map[string]string) {
	c.t.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	if _, err := c.client.CoreV1().Namespaces().Create(c.t.Context(), ns, metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) create(namespace string, pod *corev1.Pod, dryRun ...string) (*corev1.Pod, error) {
	return c.client.CoreV1().Pods(namespace).Create(c.t.Context(), pod, metav1.CreateOptions{DryRun: dryRun})
}

// mustCreate gives the pod as it is stored.
func (c *cluster) mustCreate(t *testing.T, namespace string, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	made, err := c.create(namespace, pod)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now := int64(0)
		if err := c.client.CoreV1().Pods(namespace).Delete(context.Background(), made.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Error(err)
		}
	})
	return made
}

func plainPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}},
		// The API server's admission of service accounts, which writes the name, needs controllers to be there.
		Spec: corev1.PodSpec{ServiceAccountName: "default", Containers: []corev1.Container{{Name: "app", Image: "app:1"}}},
	}
}

// restrictedPod passes Pod Security "restricted".
func restrictedPod(name string) *corev1.Pod {
	p, yes, no := plainPod(name), true, false
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		RunAsNonRoot: &yes, AllowPrivilegeEscalation: &no,
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
	return p
}

// proxyOf returns the proxy's container, or nil; there must not be two.
func proxyOf(p *corev1.Pod) *corev1.Container {
	var found []*corev1.Container
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == webhook.ProxyName {
				found = append(found, &list[i])
			}
		}
	}
	if len(found) != 1 {
		return nil
	}
	return found[0]
}

func container(p *corev1.Pod, name string) *corev1.Container {
	i := slices.IndexFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &p.Spec.Containers[i]
}

// other is somebody else's mutating webhook: it patches every pod that it is asked about.
func (c *cluster) other(t *testing.T, name string, patch func(pod *corev1.Pod) []map[string]any) {
	t.Helper()
	s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		pod := new(corev1.Pod)
		err := json.NewDecoder(r.Body).Decode(&review)
		if err == nil {
			err = json.Unmarshal(review.Request.Object.Raw, pod)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		kind := admissionv1.PatchTypeJSONPatch
		text, err := json.Marshal(patch(pod))
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true, Patch: text, PatchType: &kind}
		review.Request = nil
		_ = json.NewEncoder(w).Encode(review) // fails when the API server is gone
	}))
	none, fail := registrationv1.SideEffectClassNone, registrationv1.Fail
	config := &registrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Webhooks: []registrationv1.MutatingWebhook{{
			Name: name + ".example.com", AdmissionReviewVersions: []string{"v1"}, SideEffects: &none, FailurePolicy: &fail,
			ClientConfig: clientConfig(s, "/"),
			Rules: []registrationv1.RuleWithOperations{{
				Operations: []registrationv1.OperationType{registrationv1.Create},
				Rule:       registrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}},
			ObjectSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"other": name}},
		}},
	}
	configs := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := configs.Create(t.Context(), config, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := configs.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}
