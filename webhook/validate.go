package webhook

import (
	"bytes"
	"errors"
	"net/http"

	admissionv1 "k8s.io/api/admission/v1"

	"github.com/weft-mesh/weft/mesh/manifest"
)

// validate judges the mesh's own kinds when they are created or changed, by the rules that files are read with: schema, CEL rules,
// and what no schema can say. Other kinds, and deletions, pass.
func (s *Server) validate(w http.ResponseWriter, r *http.Request) {
	review, status, err := readReview(w, r)
	if err != nil {
		s.log.WarnContext(r.Context(), "validation request refused", "remote", r.RemoteAddr, "error", err)
		http.Error(w, err.Error(), status)
		return
	}
	s.answer(w, r, review, judge(review.Request))
}

func judge(req *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	answer := &admissionv1.AdmissionResponse{Allowed: true}
	if len(req.Object.Raw) == 0 || req.SubResource != "" || req.Operation != admissionv1.Create && req.Operation != admissionv1.Update {
		return answer
	}
	_, warnings, err := manifest.Decode(bytes.NewReader(req.Object.Raw), "")
	if err != nil {
		if list := manifest.Errors(nil); errors.As(err, &list) {
			for _, e := range list {
				e.Line = 0 // of JSON that the API server wrote, in one line
			}
		}
		return denial(err)
	}
	for _, w := range warnings {
		w.Line = 0
		answer.Warnings = append(answer.Warnings, w.String())
	}
	return answer
}
