package webhook

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	sigsyaml "sigs.k8s.io/yaml"
)

var testNamespaces = map[string]map[string]string{
	"on":           {"istio-injection": "enabled"},
	"off":          {},
	"disabled":     {"istio-injection": "disabled"},
	"rev":          {"istio.io/rev": "default"},
	"canary":       {"istio.io/rev": "canary"},
	"kube-system":  {"istio-injection": "enabled"},
	"istio-system": {"istio-injection": "enabled"},
}

func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := New(Config{
		Options:   o,
		Namespace: func(name string) (map[string]string, bool) { l, ok := testNamespaces[name]; return l, ok },
		Log:       slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reviewOf is what the API server sends.
func reviewOf(t testing.TB, namespace, pod string, edit ...func(*admissionv1.AdmissionRequest)) []byte {
	t.Helper()
	raw, err := sigsyaml.YAMLToJSON([]byte(pod))
	if err != nil {
		t.Fatal(err)
	}
	req := &admissionv1.AdmissionRequest{UID: "uid-1", Namespace: namespace, Operation: admissionv1.Create}
	req.Kind.Version, req.Kind.Kind = "v1", "Pod"
	req.Resource.Version, req.Resource.Resource = "v1", "pods"
	req.Object.Raw = raw
	for _, e := range edit {
		e(req)
	}
	review := admissionv1.AdmissionReview{Request: req}
	review.APIVersion, review.Kind = "admission.k8s.io/v1", "AdmissionReview"
	body, err := json.Marshal(review)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func post(t testing.TB, url string, client *http.Client, body []byte) (*admissionv1.AdmissionResponse, int) {
	t.Helper()
	resp, err := client.Post(url+"/inject", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode
	}
	review := new(admissionv1.AdmissionReview)
	if err := json.Unmarshal(text, review); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if review.Kind != "AdmissionReview" || review.APIVersion != "admission.k8s.io/v1" || review.Response.UID != "uid-1" {
		t.Errorf("not the answer to the question: %s", text)
	}
	return review.Response, resp.StatusCode
}

const simplePod = `
metadata: {generateName: web-6d4cf56db6-, labels: {app: web, pod-template-hash: 6d4cf56db6}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-6d4cf56db6, uid: u, controller: true}]}
spec:
  futureField: {kept: true}
  containers: [{name: web, image: web:1, futureField: kept, ports: [{containerPort: 80}]}]
`

func TestThePodThatTheAPIServerStoresHasTheProxyAndKeepsFieldsThatWeDoNotKnow(t *testing.T) {
	server := httptest.NewTLSServer(newServer(t, Options{}))
	defer server.Close()
	answer, _ := post(t, server.URL, server.Client(), reviewOf(t, "on", simplePod))
	if !answer.Allowed || answer.PatchType == nil || *answer.PatchType != admissionv1.PatchTypeJSONPatch {
		t.Fatalf("answer %+v", answer)
	}
	patch, err := jsonpatch.DecodePatch(answer.Patch)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := sigsyaml.YAMLToJSON([]byte(simplePod))
	if err != nil {
		t.Fatal(err)
	}
	stored, err := patch.Apply(raw)
	if err != nil {
		t.Fatal(err)
	}
	pod := new(corev1.Pod)
	if err := json.Unmarshal(stored, pod); err != nil {
		t.Fatal(err)
	}
	if c := pod.Spec.InitContainers; len(c) != 1 || c[0].Name != ProxyName || *c[0].RestartPolicy != corev1.ContainerRestartPolicyAlways {
		t.Errorf("init containers %+v", c)
	}
	if got := pod.Labels["service.istio.io/canonical-name"]; got != "web" {
		t.Errorf("canonical name %q", got)
	}
	if !strings.Contains(string(stored), "deployments/web") {
		t.Error("the proxy does not know its Deployment")
	}
	if n := strings.Count(string(stored), "futureField"); n != 2 {
		t.Errorf("%d of 2 unknown fields are left", n)
	}
}

func TestWhoIsInjectedAndWhoIsTold(t *testing.T) {
	s := newServer(t, Options{})
	server := httptest.NewServer(s)
	defer server.Close()
	for name, c := range map[string]struct {
		namespace, pod string
		edit           func(*admissionv1.AdmissionRequest)
		injected       bool
		reason         Reason
		annotated      bool
	}{
		"labeled":              {namespace: "on", pod: simplePod, injected: true, reason: ByNamespaceLabel},
		"labeled a moment ago": {namespace: "off", pod: simplePod, injected: true, reason: BySelectors},
		"created a moment ago": {namespace: "nowhere", pod: simplePod, injected: true, reason: BySelectors},
		"opted out":            {namespace: "on", pod: "metadata: {name: p, annotations: {sidecar.istio.io/inject: \"false\"}}\nspec: {containers: [{name: a}]}", reason: PodOptedOut},
		"system":               {namespace: "kube-system", pod: simplePod, reason: SystemNamespace},
		"host network": {namespace: "on", pod: "metadata: {name: p}\nspec: {hostNetwork: true, containers: [{name: a}]}",
			reason: HostNetwork, annotated: true},
		"an update": {namespace: "on", pod: simplePod, reason: NotBeingCreated,
			edit: func(r *admissionv1.AdmissionRequest) { r.Operation = admissionv1.Update }},
		"another kind": {namespace: "on", pod: "metadata: {name: p}", reason: NotAPod,
			edit: func(r *admissionv1.AdmissionRequest) { r.Resource.Resource = "configmaps" }},
		"a subresource": {namespace: "on", pod: "metadata: {name: p}", reason: NotAPod,
			edit: func(r *admissionv1.AdmissionRequest) { r.SubResource = "exec" }},
	} {
		t.Run(name, func(t *testing.T) {
			var edits []func(*admissionv1.AdmissionRequest)
			if c.edit != nil {
				edits = append(edits, c.edit)
			}
			answer, _ := post(t, server.URL, server.Client(), reviewOf(t, c.namespace, c.pod, edits...))
			if !answer.Allowed {
				t.Fatalf("denied: %+v", answer.Result)
			}
			if got := answer.AuditAnnotations["injection"]; got != string(c.reason) {
				t.Errorf("reason %s, want %s", got, c.reason)
			}
			if got := bytes.Contains(answer.Patch, []byte("istio-proxy")); got != c.injected {
				t.Errorf("injected: %v, want %v", got, c.injected)
			}
			if got := bytes.Contains(answer.Patch, []byte("not-injected")); got != c.annotated {
				t.Errorf("told why not: %v, want %v (%s)", got, c.annotated, answer.Patch)
			}
		})
	}
}

func TestABadAnnotationIsDeniedWithItsNameValueAndRemedy(t *testing.T) {
	server := httptest.NewServer(newServer(t, Options{}))
	defer server.Close()
	answer, _ := post(t, server.URL, server.Client(), reviewOf(t, "on",
		`{metadata: {name: p, annotations: {sidecar.istio.io/proxyCPU: lots}}, spec: {containers: [{name: a}]}}`))
	if answer.Allowed || answer.Result == nil {
		t.Fatalf("allowed: %+v", answer)
	}
	for _, want := range []string{"pod on/p", "sidecar.istio.io/proxyCPU", `"lots"`, "such as 100m"} {
		if !strings.Contains(answer.Result.Message, want) {
			t.Errorf("%q does not say %q", answer.Result.Message, want)
		}
	}
}

func TestWhatIsNoAdmissionReviewIsRefused(t *testing.T) {
	server := httptest.NewServer(newServer(t, Options{}))
	defer server.Close()
	good := string(reviewOf(t, "on", simplePod))
	for name, c := range map[string]struct {
		method, contentType, body string
		status                    int
	}{
		"GET":           {http.MethodGet, "", "", http.StatusMethodNotAllowed},
		"no JSON":       {http.MethodPost, "application/json", "}", http.StatusBadRequest},
		"empty":         {http.MethodPost, "application/json", "", http.StatusBadRequest},
		"no request":    {http.MethodPost, "application/json", `{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}`, http.StatusBadRequest},
		"other version": {http.MethodPost, "application/json", strings.Replace(good, "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1), http.StatusBadRequest},
		"form":          {http.MethodPost, "text/plain", good, http.StatusUnsupportedMediaType},
		"too long":      {http.MethodPost, "application/json", strings.Repeat(" ", maxBody+1), http.StatusRequestEntityTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			req, err := http.NewRequest(c.method, server.URL+"/inject", strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", c.contentType)
			resp, err := server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != c.status {
				t.Errorf("status %d, want %d", resp.StatusCode, c.status)
			}
		})
	}
}

func TestAPodThatIsNoPodIsDeniedAndNotACrash(t *testing.T) {
	server := httptest.NewServer(newServer(t, Options{}))
	defer server.Close()
	for _, pod := range []string{`{"spec":{"containers":"none"}}`, `[]`, `{}`, `{"metadata":null,"spec":null}`} {
		answer, _ := post(t, server.URL, server.Client(), reviewOf(t, "on", pod))
		if answer.Allowed && len(answer.Patch) > 0 {
			t.Errorf("%s was injected: %s", pod, answer.Patch)
		}
	}
}

func TestOptionsThatCannotWorkAreRefusedAtStart(t *testing.T) {
	for name, o := range map[string]Options{
		"bad policy":         {Policy: "sometimes"},
		"unknown template":   {DefaultTemplates: []string{"nope"}},
		"template field":     {Templates: map[string][]byte{"mine": []byte("spec:\n  containers:\n  - name: x\n    imag: y\n")}},
		"template value":     {Templates: map[string][]byte{"mine": []byte("spec: {hostname: \"${no.such}\"}")}},
		"template type":      {Templates: map[string][]byte{"mine": []byte("spec: {containers: {}}")}},
		"template documents": {Templates: map[string][]byte{"mine": []byte("spec: {}\n---\nspec: {}\n")}},
		"log level":          {LogLevel: "loud"},
	} {
		if _, err := NewInjector(o); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.HasPrefix(name, "template ") && !strings.Contains(err.Error(), "template mine") {
			t.Errorf("%s: %v does not name the template", name, err)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a server without namespaces was made")
	}
}
