package mesh

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/weft-mesh/weft/mesh/manifest"
)

func decodeAgain(b *testing.B, text []byte) {
	b.Helper()
	if _, _, err := manifest.Decode(bytes.NewReader(text), ""); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := manifest.Decode(bytes.NewReader(text), ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodePodJSON(b *testing.B) {
	p := pod(1, 1, "v1")
	p.APIVersion, p.Kind = "v1", "Pod"
	text, err := json.Marshal(p)
	if err != nil {
		b.Fatal(err)
	}
	decodeAgain(b, text)
}

func BenchmarkDecodeVirtualServiceYAML(b *testing.B) {
	decodeAgain(b, []byte(`apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - match: [{headers: {x-user: {exact: vip}}}]
    route: [{destination: {host: reviews, subset: v2}}]
  - route:
    - {destination: {host: reviews, subset: v1}, weight: 90}
    - {destination: {host: reviews, subset: v2}, weight: 10}
`))
}
