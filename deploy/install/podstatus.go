package install

import "encoding/json"

// revisionIn reads the annotation sidecar.istio.io/status, which the injector writes.
func revisionIn(annotation string) string {
	var status struct {
		Revision string `json:"revision"`
	}
	if json.Unmarshal([]byte(annotation), &status) != nil {
		return ""
	}
	return status.Revision
}
