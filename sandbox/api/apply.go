package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/jsonmergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/weft-mesh/weft/sandbox/store"
)

// LastApplied is kubectl's annotation: what the previous "apply" wrote. With
// it, apply leaves alone what other verbs changed (scale, label, rollout restart).
const LastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// ApplyOptions are those of kubectl apply.
type ApplyOptions struct {
	Namespace string `json:"namespace,omitempty"` // for objects that name none; "" is "default"
	// Enforce is true when the user gave -n: a document that names another namespace is then an error.
	Enforce bool `json:"enforce,omitempty"`
	DryRun  bool `json:"dryRun,omitempty"` // check everything, change nothing
	Create  bool `json:"create,omitempty"` // an object that exists is an error ("kubectl create")
}

// Result is what became of one object.
type Result struct {
	Object string `json:"object"` // "deployment.apps/web"
	Verb   string `json:"verb"`   // created, configured, unchanged
	Note   string `json:"note,omitempty"`
	Error  string `json:"error,omitempty"`
	// Warnings are about an object that is accepted all the same.
	Warnings []string `json:"warnings,omitempty"`
}

type placed struct {
	doc Document
	obj store.Object
}

// Apply reads all documents first. When one of them is broken, nothing is
// applied and the error lists every fault with file and line. Objects are then
// applied in the order given, except that namespaces come first. A failure of
// one object (for example a webhook's refusal) is in its Result.
func (s *Server) Apply(ctx context.Context, docs []Document, opt ApplyOptions) ([]Result, error) {
	var all []placed
	var faults []error
	for _, d := range docs {
		objects, err := Read(d)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for _, o := range objects {
			if err := s.place(d, o, opt); err != nil {
				faults = append(faults, err)
				continue
			}
			all = append(all, placed{d, o})
		}
	}
	faults = append(faults, s.check(all)...)
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	var results []Result
	for _, first := range []bool{true, false} {
		for _, p := range all {
			kind, _ := store.KindFor(p.obj)
			if (kind.Plural == "namespaces") != first {
				continue
			}
			results = append(results, s.applyOne(ctx, kind, p, opt))
		}
	}
	return results, nil
}

func (s *Server) place(d Document, o store.Object, opt ApplyOptions) error {
	kind, _ := store.KindFor(o)
	if !kind.Namespaced {
		o.SetNamespace("")
		return nil
	}
	switch {
	case o.GetNamespace() == "" && opt.Namespace != "":
		o.SetNamespace(opt.Namespace)
	case o.GetNamespace() == "":
		o.SetNamespace("default")
	case opt.Enforce && o.GetNamespace() != opt.Namespace:
		return fmt.Errorf("%s: %s %q is in namespace %q, but -n says %q", d.Place(d.lineOf("metadata.namespace")), kind.Kind, o.GetName(), o.GetNamespace(), opt.Namespace)
	}
	return nil
}

// check finds what can be known to be wrong before the first object is stored:
// invalid fields, mesh kinds that do not decode, namespaces that nobody makes.
func (s *Server) check(all []placed) (faults []error) {
	namespaces := map[string]bool{}
	for _, p := range all {
		if kind, _ := store.KindFor(p.obj); kind.Plural == "namespaces" {
			namespaces[p.obj.GetName()] = true
		}
	}
	for _, p := range all {
		kind, _ := store.KindFor(p.obj)
		if ns := p.obj.GetNamespace(); kind.Namespaced && !namespaces[ns] && s.Store.Get(store.Key{Resource: "namespaces", Name: ns}) == nil {
			faults = append(faults, fmt.Errorf("%s: %s %q: namespaces %q not found; create it with \"weft sandbox create namespace %s\"", p.doc.Place(p.doc.lineOf("metadata.namespace")), kind.Kind, p.obj.GetName(), ns, ns))
			continue
		}
		trial := p.obj.DeepCopyObject().(store.Object)
		if trial.GetName() == "" {
			trial.SetName("x")
		}
		setDefaults(trial)
		for _, e := range validate(kind, trial) {
			faults = append(faults, fmt.Errorf("%s: %s %q: %w", p.doc.Place(p.doc.lineOf(e.Field)), kind.Kind, p.obj.GetName(), e))
		}
		if kind.IsMesh() && s.Mesh != nil {
			_, err := s.Mesh(trial)
			for _, err := range each(err) {
				faults = append(faults, fmt.Errorf("%s: %s %q: %w", p.doc.Place(p.doc.lineOf(errorField(err))), kind.Kind, p.obj.GetName(), err))
			}
		}
	}
	return faults
}

// each takes joined errors apart.
func each(err error) []error {
	if err == nil {
		return nil
	}
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// errorField takes the field a mesh error names, if it says so by a Field method or field.
func errorField(err error) string {
	var f interface{ FieldPath() string }
	if errors.As(err, &f) {
		return f.FieldPath()
	}
	return "spec"
}

func (s *Server) applyOne(ctx context.Context, kind *store.Kind, p placed, opt ApplyOptions) Result {
	r := Result{Object: kind.Printed() + "/" + p.obj.GetName(), Note: kind.Note}
	if kind.IsMesh() && s.Mesh != nil {
		warnings, _ := s.Mesh(p.obj) // errors are found when it is stored
		for _, w := range warnings {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s: %s %q: %s", p.doc.Place(p.doc.lineOf(errorField(w))), kind.Kind, p.obj.GetName(), w))
		}
	}
	ctx = WithWarnings(ctx, func(text string) { r.Warnings = append(r.Warnings, p.doc.Place(0)+": "+text) })
	fail := func(err error) Result {
		r.Error = fmt.Sprintf("%s: %s", p.doc.Place(0), Message(err))
		return r
	}
	if p.obj.GetName() == "" {
		if !opt.Create {
			return fail(fmt.Errorf("cannot use generateName with apply"))
		}
		if !opt.DryRun {
			o, err := s.Create(ctx, p.obj)
			if err != nil {
				return fail(err)
			}
			r.Object = kind.Printed() + "/" + o.GetName()
		}
		r.Verb = "created"
		return r
	}
	modified, err := withLastApplied(p.obj)
	if err != nil {
		return fail(err)
	}
	key := store.KeyOf(p.obj)
	if s.Store.Get(key) == nil {
		r.Verb = "created"
		if opt.DryRun {
			return r
		}
		o, err := store.Decode(modified)
		if err != nil {
			return fail(err)
		}
		if _, err := s.Create(ctx, o); err != nil {
			return fail(err)
		}
		return r
	}
	if opt.Create {
		return fail(apierrors.NewAlreadyExists(kind.GroupResource(), p.obj.GetName()))
	}
	before := s.Store.Get(key)
	if opt.DryRun {
		r.Verb = "configured"
		return r
	}
	after, err := s.Update(key, func(current store.Object) error { return threeWay(kind, current, modified) })
	if err != nil {
		return fail(err)
	}
	r.Verb = "configured"
	if after.GetResourceVersion() == before.GetResourceVersion() {
		r.Verb = "unchanged"
	}
	return r
}

// withLastApplied is the manifest as the user wrote it, in JSON, carrying a copy of itself.
func withLastApplied(o store.Object) ([]byte, error) {
	m, err := asWritten(o)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{Object: m}
	a := u.GetAnnotations()
	delete(a, LastApplied)
	u.SetAnnotations(a)
	plain, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	if a == nil {
		a = map[string]string{}
	}
	a[LastApplied] = string(plain)
	u.SetAnnotations(a)
	return u.MarshalJSON()
}

// asWritten is an object as JSON without what only a server writes.
func asWritten(o store.Object) (map[string]any, error) {
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return nil, err
	}
	m = runtime.DeepCopyJSON(m)
	delete(m, "status")
	if k, ok := store.KindFor(o); ok && m["kind"] == nil {
		m["apiVersion"], m["kind"] = groupVersion(k), k.Kind
	}
	meta, _ := m["metadata"].(map[string]any)
	for _, f := range []string{"creationTimestamp", "uid", "resourceVersion", "generation", "managedFields", "selfLink"} {
		delete(meta, f)
	}
	prune(m)
	return m, nil
}

// prune removes the nulls that Go's encoding leaves for unset structs: in a
// merge patch a null would mean "delete".
func prune(m map[string]any) {
	for k, v := range m {
		switch t := v.(type) {
		case nil:
			delete(m, k)
		case map[string]any:
			prune(t)
		case []any:
			for _, e := range t {
				if em, ok := e.(map[string]any); ok {
					prune(em)
				}
			}
		}
	}
}

// threeWay changes current from what the last apply wrote to what this one does.
func threeWay(kind *store.Kind, current store.Object, modified []byte) error {
	original := []byte(current.GetAnnotations()[LastApplied])
	cur, err := json.Marshal(current)
	if err != nil {
		return err
	}
	var patched []byte
	if kind.New != nil {
		meta, err := strategicpatch.NewPatchMetaFromStruct(kind.New())
		if err != nil {
			return err
		}
		if len(original) == 0 {
			original = nil
		}
		patch, err := strategicpatch.CreateThreeWayMergePatch(original, modified, cur, meta, true)
		if err != nil {
			return err
		}
		patched, err = strategicpatch.StrategicMergePatchUsingLookupPatchMeta(cur, patch, meta)
		if err != nil {
			return err
		}
	} else {
		if len(original) == 0 {
			original = []byte("{}")
		}
		patch, err := jsonmergepatch.CreateThreeWayJSONMergePatch(original, modified, cur)
		if err != nil {
			return err
		}
		if patched, err = jsonpatch.MergePatch(cur, patch); err != nil {
			return err
		}
	}
	return decodeInto(current, patched)
}

// Patch applies a patch of kubectl's kinds merge (types.MergePatchType) or
// strategic (types.StrategicMergePatchType; merge for mesh kinds) or json.
func (s *Server) Patch(key store.Key, kindOfPatch types.PatchType, patch []byte) (store.Object, error) {
	kind, ok := store.Resource(key.Resource)
	if !ok {
		return nil, store.NotFound(key)
	}
	return s.Update(key, func(current store.Object) error {
		cur, err := json.Marshal(current)
		if err != nil {
			return err
		}
		var patched []byte
		switch {
		case kindOfPatch == types.JSONPatchType:
			p, err := jsonpatch.DecodePatch(patch)
			if err != nil {
				return apierrors.NewBadRequest("the patch is not a JSON patch: " + err.Error())
			}
			if patched, err = p.Apply(cur); err != nil {
				return apierrors.NewBadRequest("the patch does not apply: " + err.Error())
			}
		case kindOfPatch == types.StrategicMergePatchType && kind.New != nil:
			if patched, err = strategicpatch.StrategicMergePatch(cur, patch, kind.New()); err != nil {
				return apierrors.NewBadRequest("the patch does not apply: " + err.Error())
			}
		default:
			if patched, err = jsonpatch.MergePatch(cur, patch); err != nil {
				return apierrors.NewBadRequest("the patch does not apply: " + err.Error())
			}
		}
		before := current.DeepCopyObject().(store.Object)
		if err := decodeInto(current, patched); err != nil {
			return apierrors.NewBadRequest("the patched object is not valid: " + err.Error())
		}
		if current.GetName() != before.GetName() || current.GetNamespace() != before.GetNamespace() {
			return apierrors.NewBadRequest("a patch may not rename an object")
		}
		return nil
	})
}

func decodeInto(o store.Object, data []byte) error {
	n, err := store.Decode(data)
	if err != nil {
		return err
	}
	copyInto(o, n)
	return nil
}

// copyInto makes *dst what *src is; both have the same type.
func copyInto(dst, src store.Object) {
	reflect.ValueOf(dst).Elem().Set(reflect.ValueOf(src).Elem())
}
