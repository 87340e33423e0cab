package api

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-mesh/weft/sandbox/store"
)

// startWebhook serves AdmissionReviews over HTTPS and configures the server with it.
func startWebhook(t *testing.T, s *Server, selectors string, answer func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) *httptest.Server {
	t.Helper()
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		var review admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &review); err != nil {
			t.Error(err)
		}
		review.Response = answer(review.Request)
		review.Response.UID = review.Request.UID
		review.Request = nil
		if err := json.NewEncoder(w).Encode(review); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(srv.Close)
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	s.Webhook = &Webhook{Root: func() []byte { return root }}
	configure(t, s, srv.URL, selectors)
	return srv
}

func configure(t *testing.T, s *Server, url, selectors string) {
	t.Helper()
	apply(t, s, `apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: injector}
webhooks:
- name: namespace.sidecar-injector.istio.io
  clientConfig: {url: "`+url+`/inject"}
  failurePolicy: Fail
  timeoutSeconds: 2
  rules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
`+selectors)
}

func newPod(labels map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "p-", Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a:1"}}}}
}

func TestAWebhooksPatchIsInTheStoredPod(t *testing.T) {
	s := newServer(t)
	var asked *admissionv1.AdmissionRequest
	startWebhook(t, s, "", func(r *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		asked = r
		jsonPatch := admissionv1.PatchTypeJSONPatch
		return &admissionv1.AdmissionResponse{Allowed: true, PatchType: &jsonPatch, Patch: []byte(`[{"op":"add","path":"/spec/initContainers","value":[{"name":"istio-proxy","image":"envoy:1","restartPolicy":"Always","startupProbe":{"httpGet":{"port":15099}}}]}]`)}
	})
	o, err := s.Create(t.Context(), newPod(nil))
	if err != nil {
		t.Fatal(err)
	}
	p := o.(*corev1.Pod)
	if len(p.Spec.InitContainers) != 1 || p.Spec.InitContainers[0].StartupProbe.PeriodSeconds != 10 {
		t.Errorf("stored pod: %+v; the patch must be in it, with defaults", p.Spec.InitContainers)
	}
	if asked.Namespace != "default" || asked.Operation != admissionv1.Create || asked.Resource.Resource != "pods" || !strings.Contains(string(asked.Object.Raw), `"serviceAccountName":"default"`) {
		t.Errorf("the webhook was asked %+v: %s", asked, asked.Object.Raw)
	}
}

func TestADenialReachesTheUserInTheWebhooksWords(t *testing.T) {
	s := newServer(t)
	startWebhook(t, s, "", func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{Code: 400, Message: "annotation x: bad"}}
	})
	_, err := s.Create(t.Context(), newPod(nil))
	want := `admission webhook "namespace.sidecar-injector.istio.io" denied the request: annotation x: bad`
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	if n := len(s.Store.List("pods", "", nil)); n != 0 {
		t.Errorf("%d pods were stored", n)
	}
}

func TestWarningsReachTheUserWithFileAndLine(t *testing.T) {
	s := newServer(t)
	s.Mesh = func(store.Object) ([]error, error) { return []error{badField{"spec.hosts"}}, nil }
	startWebhook(t, s, "", func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Warnings: []string{"annotation x has no effect"}}
	})
	text := "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: a, image: a}]}\n---\n" +
		"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\nspec:\n  hosts: [a]\n"
	results, err := s.Apply(t.Context(), Split("m.yaml", []byte(text)), ApplyOptions{})
	if err != nil || len(results) != 2 {
		t.Fatal(results, err)
	}
	for i, want := range []string{"m.yaml:1: annotation x has no effect", `m.yaml:10: VirtualService "v": spec.hosts: bad`} {
		if got := results[i].Warnings; len(got) != 1 || got[0] != want {
			t.Errorf("%s: warnings %q, want %q", results[i].Object, got, want)
		}
	}
}

func TestSelectorsDecideWhoIsSentToTheWebhook(t *testing.T) {
	s := newServer(t)
	calls := 0
	startWebhook(t, s, `  namespaceSelector: {matchExpressions: [{key: istio-injection, operator: In, values: [enabled]}]}
  objectSelector: {matchExpressions: [{key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}]}
`, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		calls++
		return &admissionv1.AdmissionResponse{Allowed: true}
	})
	create := func(labels map[string]string) {
		t.Helper()
		if _, err := s.Create(t.Context(), newPod(labels)); err != nil {
			t.Fatal(err)
		}
	}
	create(nil)
	if calls != 0 {
		t.Error("a pod of a namespace without the label was sent")
	}
	if _, err := s.Patch(store.Key{Resource: "namespaces", Name: "default"}, "application/merge-patch+json", []byte(`{"metadata":{"labels":{"istio-injection":"enabled"}}}`)); err != nil {
		t.Fatal(err)
	}
	// The very next pod sees the label: nothing lags behind.
	create(nil)
	create(map[string]string{"sidecar.istio.io/inject": "false"})
	if calls != 1 {
		t.Errorf("%d pods were sent, want 1", calls)
	}
}

func TestWithoutAWebhookThatAnswersNoPodIsMade(t *testing.T) {
	s := newServer(t)
	srv := startWebhook(t, s, "", func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return nil })
	srv.Close()
	if _, err := s.Create(t.Context(), newPod(nil)); err == nil || !strings.Contains(err.Error(), `failed calling webhook "namespace.sidecar-injector.istio.io"`) {
		t.Errorf("server gone: %v", err)
	}
	s.Webhook.Root = func() []byte { return nil }
	if _, err := s.Create(t.Context(), newPod(nil)); err == nil || !strings.Contains(err.Error(), "the control plane has not written its root") {
		t.Errorf("no root yet: %v", err)
	}
}

func TestAWebhookWithAForeignCertificateIsNotTrusted(t *testing.T) {
	s := newServer(t)
	startWebhook(t, s, "", func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true}
	})
	other := newServer(t)
	stranger := startWebhook(t, other, "", nil)
	s.Webhook.Root = other.Webhook.Root
	_ = stranger
	// httptest gives every server the same certificate: what differs here is the name that is asked for.
	if _, err := s.Patch(store.Key{Resource: "mutatingwebhookconfigurations.admissionregistration.k8s.io", Name: "injector"}, "application/json-patch+json",
		[]byte(`[{"op":"replace","path":"/webhooks/0/clientConfig","value":{"url":"`+strings.Replace(stranger.URL, "127.0.0.1", "localhost", 1)+`"}}]`)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), newPod(nil)); err == nil || !strings.Contains(err.Error(), "x509") {
		t.Errorf("%v, want a certificate error", err)
	}
}
