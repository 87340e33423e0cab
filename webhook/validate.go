package webhook

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/weft-mesh/weft/mesh/manifest"
)

// verdicts counts what was judged, under Istio's names.
type verdicts struct {
	passed, failed *prometheus.CounterVec
	broken         prometheus.Counter
}

func newVerdicts() verdicts {
	vector := func(name, help string, more ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, append([]string{"group", "version", "resource"}, more...))
	}
	return verdicts{
		passed: vector("galley_validation_passed", "Mesh objects that were found right."),
		failed: vector("galley_validation_failed", "Mesh objects that were refused.", "reason"),
		broken: prometheus.NewCounter(prometheus.CounterOpts{Name: "galley_validation_http_error", Help: "Requests for validation that were none."}),
	}
}

// validate judges the mesh's own kinds when they are created or changed, by the rules that files are read with: schema, CEL rules,
// and what no schema can say. Other kinds, and deletions, pass.
func (s *Server) validate(w http.ResponseWriter, r *http.Request) {
	review, status, err := readReview(w, r)
	if err != nil {
		s.verdicts.broken.Inc()
		s.log.WarnContext(r.Context(), "validation request refused", "remote", r.RemoteAddr, "error", err)
		http.Error(w, err.Error(), status)
		return
	}
	answer := judge(review.Request, s.references)
	resource := review.Request.Resource
	if answer.Allowed {
		s.verdicts.passed.WithLabelValues(resource.Group, resource.Version, resource.Resource).Inc()
	} else {
		s.verdicts.failed.WithLabelValues(resource.Group, resource.Version, resource.Resource, "invalid_resource").Inc()
	}
	s.answer(w, r, review, answer)
}

func judge(req *admissionv1.AdmissionRequest, known References) *admissionv1.AdmissionResponse {
	answer := &admissionv1.AdmissionResponse{Allowed: true}
	if len(req.Object.Raw) == 0 || req.SubResource != "" || req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
		return answer
	}
	objects, warnings, err := manifest.Decode(bytes.NewReader(req.Object.Raw), "")
	if err != nil {
		if list := manifest.Errors(nil); errors.As(err, &list) {
			for _, e := range list {
				e.Line = 0 // of JSON that the API server wrote, in one line
			}
		}
		if req.Operation == admissionv1.Update && sameSpec(req.Object.Raw, req.OldObject.Raw) {
			// It was stored like that, before this webhook or by an older release. Whoever labels it, or takes
			// a finalizer away so that it can go, did not write the mistake.
			answer.Warnings = []string{err.Error()}
			return answer
		}
		return denial(err)
	}
	for _, w := range warnings {
		w.Line = 0
		answer.Warnings = append(answer.Warnings, w.String())
	}
	if known == nil || req.Operation == admissionv1.Update && sameSpec(req.Object.Raw, req.OldObject.Raw) {
		return answer
	}
	for _, o := range objects {
		for _, text := range dangling(o.Object, req.Namespace, known) {
			answer.Warnings = append(answer.Warnings, req.Kind.Kind+" "+req.Namespace+"/"+req.Name+": "+text)
		}
	}
	return answer
}

// sameSpec reports whether two versions of an object have the same spec.
func sameSpec(a, b []byte) bool {
	var x, y struct {
		Spec json.RawMessage `json:"spec"`
	}
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && bytes.Equal(x.Spec, y.Spec)
}
