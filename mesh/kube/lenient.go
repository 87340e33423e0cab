package kube

import (
	"encoding/json"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// lenientCodecs decode what can be decoded. A mesh object that was stored before its schema was
// tightened, or by a newer release, would otherwise make the whole list unreadable,
// and all other objects of its kind with it.
type lenientCodecs struct{ runtime.NegotiatedSerializer }

func (c lenientCodecs) DecoderToVersion(d runtime.Decoder, gv runtime.GroupVersioner) runtime.Decoder {
	return lenientDecoder{c.NegotiatedSerializer.DecoderToVersion(d, gv)}
}

type lenientDecoder struct{ runtime.Decoder }

// unreadable stands for an object that could not be decoded.
type unreadable struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	err error
}

func (u *unreadable) DeepCopyObject() runtime.Object {
	c := *u
	c.ObjectMeta = *u.ObjectMeta.DeepCopy()
	return &c
}

func (d lenientDecoder) Decode(data []byte, def *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	o, gvk, err := d.Decoder.Decode(data, def, into)
	if err == nil {
		return o, gvk, nil
	}
	var list struct {
		metav1.TypeMeta `json:",inline"`
		metav1.ListMeta `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	// Only custom resources, which come as JSON with apiVersion and kind in each item, can be
	// taken apart; what fails to decode in protobuf is broken altogether.
	if json.Unmarshal(data, &list) != nil || !strings.HasSuffix(list.GroupVersionKind().Group, ".istio.io") {
		return nil, gvk, err
	}
	kind := list.GroupVersionKind()
	if !strings.HasSuffix(list.Kind, "List") {
		u := unreadable{err: err}
		if json.Unmarshal(data, &u) != nil || u.Name == "" {
			return nil, gvk, err
		}
		return &u, &kind, nil
	}
	out := &metav1.List{TypeMeta: list.TypeMeta, ListMeta: list.ListMeta}
	for _, item := range list.Items {
		o, _, err := d.Decode(item, nil, nil)
		if err != nil {
			return nil, gvk, err // not even a name
		}
		out.Items = append(out.Items, runtime.RawExtension{Object: o})
	}
	return out, &kind, nil
}
