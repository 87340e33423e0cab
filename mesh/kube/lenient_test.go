package kube

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"

	networking "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer"

	"github.com/weft-mesh/weft/mesh/manifest"
)

// decoderFor is what answers of the API server in JSON are decoded with.
func decoderFor(t *testing.T) runtime.Decoder {
	t.Helper()
	codecs := lenientCodecs{serializer.NewCodecFactory(manifest.Scheme()).WithoutConversion()}
	info, ok := runtime.SerializerInfoForMediaType(codecs.SupportedMediaTypes(), runtime.ContentTypeJSON)
	if !ok {
		t.Fatal("no JSON")
	}
	return codecs.DecoderToVersion(info.Serializer, nil)
}

func TestOneBrokenObjectDoesNotHideTheOthers(t *testing.T) {
	const good = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"good","namespace":"a"},"spec":{"hosts":["x"]}}`
	const broken = `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","metadata":{"name":"broken","namespace":"a"},"spec":{"hosts":7}}`
	d := decoderFor(t)
	list, _, err := d.Decode([]byte(`{"apiVersion":"networking.istio.io/v1","kind":"VirtualServiceList","metadata":{"resourceVersion":"5"},"items":[`+broken+`,`+good+`]}`), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := meta.ListAccessor(list)
	if err != nil || l.GetResourceVersion() != "5" {
		t.Fatalf("the list has lost its version: %v", err)
	}
	items, err := meta.ExtractList(list)
	if err != nil || len(items) != 2 {
		t.Fatalf("%d items: %v", len(items), err)
	}
	if u, ok := items[0].(*unreadable); !ok || u.Name != "broken" || u.Namespace != "a" || u.err == nil {
		t.Errorf("the broken one is %#v", items[0])
	}
	if v, ok := items[1].(*networking.VirtualService); !ok || v.Name != "good" || len(v.Spec.Hosts) != 1 {
		t.Errorf("the good one is %#v", items[1])
	}
	one, _, err := d.Decode([]byte(broken), nil, nil) // as in a watch
	if u, ok := one.(*unreadable); err != nil || !ok || u.Name != "broken" {
		t.Errorf("a single broken one is %#v, %v", one, err)
	}
	for _, text := range []string{`{`, `{"apiVersion":"v1","kind":"Pod","spec":7}`, `{"apiVersion":"networking.istio.io/v1","kind":"VirtualService","spec":7}`} {
		if o, _, err := d.Decode([]byte(text), nil, nil); err == nil {
			t.Errorf("%s is taken for %#v", text, o)
		}
	}
}
