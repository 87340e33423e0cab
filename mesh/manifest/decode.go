package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/weft-mesh/weft/mesh"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kubejson "sigs.k8s.io/json"
)

// maxSize is the most that Decode reads: a file of 64 MiB is not a manifest.
const maxSize = 64 << 20

// Decode reads all documents of a YAML or JSON stream; a List stands for its items. filename is for
// messages and for [mesh.Object.File] only. Mesh kinds are checked and defaulted by their CRD's schema, its CEL
// rules and the rules of the API's documentation; all objects are decoded strictly: an unknown field is an error.
// Objects of kinds that no one here knows come as *unstructured.Unstructured with a warning.
//
// The error is of type [Errors] and names every mistake; then there are no objects, so that
// nothing is half-applied. Objects without a namespace keep it empty: see [SetNamespace].
func Decode(r io.Reader, filename string) ([]mesh.Object, []Warning, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, nil, Errors{{File: filename, Message: err.Error()}}
	}
	if len(text) > maxSize {
		return nil, nil, Errors{{File: filename, Message: fmt.Sprintf("larger than %d MiB", maxSize>>20)}}
	}
	d := decoder{file: filename}
	docs, errs := parse(text)
	d.several = len(docs)+len(errs) > 1
	for _, e := range errs {
		d.document = e.document
		d.fail(mesh.Key{}, "", e.err.line, e.err.message)
	}
	for _, doc := range docs {
		d.document = doc.number
		d.object(doc.root, "")
	}
	d.duplicates()
	if err := d.errs.err(); err != nil {
		return nil, d.warnings, err
	}
	return d.objects, d.warnings, nil
}

// decoder collects what is found in one stream.
type decoder struct {
	file     string
	several  bool // more than one document: messages say which
	document int
	objects  []mesh.Object
	warnings []Warning
	errs     Errors
}

func (d *decoder) at(key mesh.Key, field string, line int, message string) Error {
	e := Error{File: d.file, Line: line, Object: key, Field: field, Message: message}
	if d.several {
		e.Document = d.document
	}
	return e
}

func (d *decoder) fail(key mesh.Key, field string, line int, message string) {
	e := d.at(key, field, line, message)
	d.errs = append(d.errs, &e)
}

func (d *decoder) warn(key mesh.Key, field string, line int, message string) {
	d.warnings = append(d.warnings, Warning{d.at(key, field, line, message)})
}

// object decodes one object; path is where it stands in its document, for items of a List.
func (d *decoder) object(n *node, path string) {
	object, ok := n.value.(map[string]any)
	if !ok {
		d.fail(mesh.Key{}, path, n.line, "an object was expected: a mapping with apiVersion, kind and metadata")
		return
	}
	apiVersion, _ := object["apiVersion"].(string)
	kind, _ := object["kind"].(string)
	var key mesh.Key
	key.Kind = kind
	if m, ok := object["metadata"].(map[string]any); ok {
		key.Name, _ = m["name"].(string)
		key.Namespace, _ = m["namespace"].(string)
	}
	switch {
	case kind == "":
		d.fail(key, "kind", n.line, "every object needs a kind")
		return
	case apiVersion == "":
		d.fail(key, "apiVersion", n.line, "every object needs an apiVersion")
		return
	}
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		d.fail(key, "apiVersion", n.lineOf("apiVersion"), fmt.Sprintf("%q is not of the form group/version", apiVersion))
		return
	}
	gvk := gv.WithKind(kind)
	if items := n.fields["items"]; items != nil && strings.HasSuffix(kind, "List") {
		for i, item := range items.items {
			if m, ok := item.value.(map[string]any); ok && kind != "List" { // items of typed lists may leave these out
				setDefault(m, "apiVersion", apiVersion)
				setDefault(m, "kind", strings.TrimSuffix(kind, "List"))
			}
			d.object(item, fmt.Sprintf("items[%d]", i))
		}
		return
	}
	if strings.HasSuffix(kind, "List") && object["items"] == nil && (kind == "List" || Scheme().Recognizes(gvk)) {
		return // an empty list
	}
	mistakes := checkMeta(object, gvk)
	before := len(d.errs)
	decoded := d.decode(object, gvk, key, n, &mistakes)
	for _, m := range mistakes {
		if m.warning {
			d.warn(key, m.field, n.lineOf(m.field), m.message)
		} else {
			d.fail(key, m.field, n.lineOf(m.field), m.message)
		}
	}
	if decoded != nil && len(d.errs) == before {
		d.objects = append(d.objects, mesh.Object{Object: decoded, File: d.file, Line: n.line})
	}
}

func setDefault(m map[string]any, key, value string) {
	if _, ok := m[key]; !ok {
		m[key] = value
	}
}

// decode makes the typed object.
func (d *decoder) decode(object map[string]any, gvk schema.GroupVersionKind, key mesh.Key, n *node, mistakes *[]mistake) runtime.Object {
	if !Scheme().Recognizes(gvk) {
		if message := unknownKind(gvk); message != "" {
			*mistakes = append(*mistakes, mistake{field: "kind", message: message})
			return nil
		}
		d.warn(key, "", n.line, "a kind that nothing here reads; ignored")
		return &unstructured.Unstructured{Object: object}
	}
	crd, err := schemaOf(gvk.Group, gvk.Kind)
	if err != nil {
		d.fail(key, "", n.line, err.Error())
		return nil
	}
	if crd != nil {
		found := append(crd.check(object), strictMeta(object)...)
		*mistakes = append(*mistakes, found...)
		if slices.ContainsFunc(found, func(m mistake) bool { return !m.warning }) {
			return nil
		}
	}
	out, err := Scheme().New(gvk)
	if err != nil {
		d.fail(key, "", n.line, err.Error())
		return nil
	}
	text, err := json.Marshal(object)
	if err != nil {
		d.fail(key, "", n.line, err.Error())
		return nil
	}
	if crd != nil {
		if err := json.Unmarshal(text, out); err != nil {
			*mistakes = append(*mistakes, protoMistake(err))
			return nil
		}
		*mistakes = append(*mistakes, validate(out)...)
		return out
	}
	strict, err := kubejson.UnmarshalStrict(text, out)
	if err != nil {
		*mistakes = append(*mistakes, jsonMistake(err))
		return nil
	}
	for _, e := range strict {
		*mistakes = append(*mistakes, strictMistake(e, out))
	}
	if len(strict) > 0 {
		return nil
	}
	out.GetObjectKind().SetGroupVersionKind(gvk)
	return out
}

// duplicates finds objects that are written twice in one stream.
func (d *decoder) duplicates() {
	first := map[mesh.Key]mesh.Object{}
	for _, o := range d.objects {
		key, group := keyOf(o.Object)
		if key.Name == "" {
			continue // generateName: each is another object
		}
		full := key
		full.Kind += "." + group
		if old, twice := first[full]; twice {
			d.errs = append(d.errs, duplicate(key, o, old))
			continue
		}
		first[full] = o
	}
}

func duplicate(key mesh.Key, again, first mesh.Object) *Error {
	where := fmt.Sprintf("line %d", first.Line)
	if first.File != again.File {
		where = fmt.Sprintf("%s:%d", first.File, first.Line)
	}
	return &Error{File: again.File, Line: again.Line, Object: key, Message: "this object is written twice; the first is in " + where + ": remove one of them"}
}

// keyOf names an object, also an unstructured one; group tells kinds of the same name apart.
func keyOf(o runtime.Object) (key mesh.Key, group string) {
	gvk := o.GetObjectKind().GroupVersionKind()
	m := o.(metav1.Object) // whatever a scheme or unstructured gives has metadata
	return mesh.Key{Kind: gvk.Kind, Namespace: m.GetNamespace(), Name: m.GetName()}, gvk.Group
}

// Namespaced reports whether objects of this kind live in a namespace.
func Namespaced(o runtime.Object) bool {
	return !clusterScoped[o.GetObjectKind().GroupVersionKind().Kind]
}

// SetNamespace gives the namespace to the namespaced objects that have none.
func SetNamespace(objects []mesh.Object, namespace string) {
	for _, o := range objects {
		if m, ok := o.Object.(metav1.Object); ok && m.GetNamespace() == "" && Namespaced(o.Object) {
			m.SetNamespace(namespace)
		}
	}
}

// protoMistake words an error of protojson, which the schema should have found before.
func protoMistake(err error) mistake {
	text := err.Error()
	if i := strings.Index(text, ": "); i >= 0 && strings.HasPrefix(text, "proto:") {
		text = text[i+2:]
	}
	return mistake{field: "spec", message: text}
}

// jsonMistake words a type error of encoding/json.
func jsonMistake(err error) mistake {
	var t *json.UnmarshalTypeError
	if errors.As(err, &t) {
		return mistake{field: t.Field, message: fmt.Sprintf("a %s does not fit here: a %s was expected", jsonName(t.Value), jsonName(t.Type.String()))}
	}
	text := err.Error()
	if field, kind, got, ok := typeError(text); ok {
		return mistake{field: field, message: fmt.Sprintf("a %s does not fit here: a %s was expected", jsonName(got), jsonName(kind))}
	}
	return mistake{message: strings.TrimPrefix(text, "json: ")}
}
