package webhook

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
)

// Whatever is posted, the server answers; and a patch that it answers with applies to the pod that was posted.
func FuzzAdmissionReview(f *testing.F) {
	f.Add(reviewOf(f, "on", simplePod))
	f.Add(reviewOf(f, "on", `{metadata: {annotations: {}}, spec: {initContainers: [], containers: [{name: istio-proxy, image: auto}, {name: a}]}}`))
	f.Add(reviewOf(f, "on", `{spec: {containers: [{name: a, readinessProbe: {httpGet: {port: x}}, ports: [{name: x, containerPort: 1}, {containerPort: 1, protocol: UDP}]}]}}`))
	f.Add(reviewOf(f, "on", `{metadata: {labels: {sidecar.istio.io/inject: "true"}}, spec: {hostNetwork: true}}`))
	f.Add([]byte(`{"kind":"AdmissionReview"}`))
	f.Add(reviewOf(f, "on", virtualService, func(r *admissionv1.AdmissionRequest) { r.Resource.Group = "networking.istio.io" }))
	s := newServer(f, Options{})
	f.Fuzz(func(t *testing.T, body []byte) {
		judged := httptest.NewRequest(http.MethodPost, "/validate", bytes.NewReader(body))
		judged.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, judged)
		if w.Code == http.StatusOK && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("no JSON: %s", w.Body)
		}
		req := httptest.NewRequest(http.MethodPost, "/inject", bytes.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		w = httptest.NewRecorder()
		s.ServeHTTP(w, req)
		if w.Code != http.StatusOK {
			return
		}
		var sent, got admissionv1.AdmissionReview
		if err := json.Unmarshal(body, &sent); err != nil {
			t.Fatalf("answered what is no review: %s", body)
		}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Response == nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
		if got.Response.Patch == nil {
			return
		}
		patch, err := jsonpatch.DecodePatch(got.Response.Patch)
		if err != nil {
			t.Fatal(err)
		}
		var object map[string]json.RawMessage
		if json.Unmarshal(sent.Request.Object.Raw, &object) != nil || hasOddKeys(sent.Request.Object.Raw) {
			return
		}
		stored, err := patch.Apply(sent.Request.Object.Raw)
		if err != nil {
			t.Fatalf("%v: %s on %s", err, got.Response.Patch, sent.Request.Object.Raw)
		}
		pod := new(corev1.Pod)
		if err := json.Unmarshal(stored, pod); err != nil {
			t.Fatal(err)
		}
	})
}

// hasOddKeys: Go takes "SPEC" and "Spec" for "spec" and the last of two equal keys; the API server sends neither.
func hasOddKeys(raw []byte) bool {
	pod := new(corev1.Pod)
	if json.Unmarshal(raw, pod) != nil {
		return true
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(new(corev1.Pod)) != nil || !bytes.Equal(bytes.ToLower(raw), raw) || bytes.Contains(raw, []byte(`\u`))
}

// Whatever stands in an annotation, the pod gets the fields that its templates give it, or is denied.
func FuzzAnnotations(f *testing.F) {
	index := func(name string) uint8 { return uint8(slices.Index(everyAnnotation, name)) }
	for i := range everyAnnotation {
		f.Add(uint8(i), hostile[i%len(hostile)], uint8(i*7), "1")
	}
	f.Add(index(annProxyConfig), "proxyMetadata: {A: b}\ntracing: {sampling: 1}", index(annUserVolume), `{"x":{"emptyDir":{}}}`)
	f.Add(index("traffic.sidecar.istio.io/excludeOutboundIPRanges"), "10.0.0.0/8", index(annStatsRegexps), "a.*")
	in := newInjector(f, Options{Templates: map[string][]byte{"team": []byte(teamTemplate)}})
	f.Fuzz(func(t *testing.T, name1 uint8, value1 string, name2 uint8, value2 string) {
		name := func(i uint8) string { return everyAnnotation[int(i)%len(everyAnnotation)] }
		checkShape(t, in, map[string]string{name(name1): value1, name(name2): value2})
	})
}

// Whatever a file holds, reading it does not crash, and what is not injected comes out as it went in.
func FuzzManifest(f *testing.F) {
	files, err := filepath.Glob("testdata/*/in.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	in := newInjector(f, Options{})
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ReadManifest("f", text)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := m.WriteTo(&out); err != nil || !bytes.Equal(out.Bytes(), text) {
			t.Fatalf("%v: %q became %q", err, text, out.Bytes())
		}
		for _, w := range m.Workloads {
			if _, err := m.Inject(in, w, "default", nil); err != nil {
				return
			}
		}
		out.Reset()
		if _, err := m.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		again, err := ReadManifest("f", out.Bytes())
		if err != nil {
			t.Fatalf("%v: %q became %q", err, text, out.Bytes())
		}
		if len(again.Workloads) != len(m.Workloads) {
			t.Fatalf("%d workloads became %d", len(m.Workloads), len(again.Workloads))
		}
	})
}
