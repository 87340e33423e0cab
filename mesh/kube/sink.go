package kube

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/mesh"
	"github.com/weft-mesh/weft/mesh/manifest"
)

// name is that of an object within its kind.
type name struct{ namespace, name string }

// sink takes what the API server says about one kind to the mesh. It is the reflector's store.
// Its fields belong to Source.mu.
type sink struct {
	source   *Source
	kind     string
	selected bool          // discoverySelectors apply
	synced   chan struct{} // closed after the first list
	listed   bool

	inMesh map[name]struct{}
	kept   map[name]runtime.Object // in namespaces that are not selected
	wrong  map[name]struct{}       // what was complained of the last time
	again  func()                  // lists anew
}

var _ cache.TransformingStore = (*sink)(nil)

func newSink(s *Source, k kind) *sink {
	return &sink{source: s, kind: k.name, selected: k.selected, synced: make(chan struct{}), inMesh: map[name]struct{}{}, kept: map[name]runtime.Object{}, wrong: map[name]struct{}{}, again: func() {}}
}

// Transformer lets the reflector drop what is not used while a list still streams in.
func (k *sink) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return k.lean(o), nil }
}

// Add implements cache.ReflectorStore.
func (k *sink) Add(o any) error { return k.Update(o) }

// Update implements cache.ReflectorStore.
func (k *sink) Update(o any) error {
	o = k.lean(o)
	k.source.mu.Lock()
	defer k.source.mu.Unlock()
	var c change
	if err := k.take(o, &c); err != nil {
		return err
	}
	k.source.update(c)
	return nil
}

// Delete implements cache.ReflectorStore.
func (k *sink) Delete(o any) error {
	n, err := nameOf(o)
	if err != nil {
		return err
	}
	k.source.mu.Lock()
	defer k.source.mu.Unlock()
	var c change
	k.drop(n, &c)
	k.source.update(c)
	return nil
}

// Replace implements cache.ReflectorStore: what is not in the list was deleted while nobody watched.
func (k *sink) Replace(list []any, _ string) error {
	for i := range list {
		list[i] = k.lean(list[i])
	}
	k.source.mu.Lock()
	defer k.source.mu.Unlock()
	var c change
	listed := make(map[name]struct{}, len(list))
	for _, o := range list {
		n, err := nameOf(o)
		if err != nil {
			return err
		}
		listed[n] = struct{}{}
		if err := k.take(o, &c); err != nil {
			return err
		}
	}
	for n := range k.inMesh {
		if _, ok := listed[n]; !ok {
			k.drop(n, &c)
		}
	}
	for n := range k.kept {
		if _, ok := listed[n]; !ok {
			k.drop(n, &c)
		}
	}
	for n := range k.wrong {
		if _, ok := listed[n]; !ok {
			k.drop(n, &c)
		}
	}
	k.source.update(c)
	if !k.listed {
		k.listed = true
		close(k.synced)
	}
	return nil
}

// Resync implements cache.ReflectorStore.
func (k *sink) Resync() error { return nil }

// take decides where an object belongs.
func (k *sink) take(o any, c *change) error {
	n, err := nameOf(o)
	if err != nil {
		return err
	}
	if u, ok := o.(*unreadable); ok {
		// What it replaces stays in force, as for a file that cannot be read.
		k.complain(n, mesh.Problem{Message: "cannot be read, and is not used; what it replaces stays in force: " + u.err.Error()})
		return nil
	}
	object, ok := o.(runtime.Object)
	if !ok {
		return fmt.Errorf("%T is not an object of the API", o)
	}
	if !k.selected || k.source.selection.Includes(n.namespace) {
		delete(k.kept, n)
		k.inMesh[n] = struct{}{}
		c.apply = append(c.apply, mesh.Object{Object: object})
		k.complain(n, mistakes(k.kind, object)...)
		return nil
	}
	k.remove(n, c)
	k.kept[n] = object
	return nil
}

// complain says what is wrong with an object, which is used as far as it can be, or that nothing is any more.
func (k *sink) complain(n name, problems ...mesh.Problem) {
	_, before := k.wrong[n]
	if len(problems) == 0 && !before {
		return
	}
	delete(k.wrong, n)
	key := mesh.Key{Kind: k.kind, Namespace: n.namespace, Name: n.name}
	for i := range problems {
		k.wrong[n] = struct{}{}
		problems[i].Ref = mesh.Ref{Kind: key.Kind, Namespace: key.Namespace, Name: key.Name}
	}
	k.source.config.Changing()
	k.source.config.Store.Complain(key, problems...)
}

// mistakes are those that validation finds, in an object that may have been stored without it: by an older release, or while the webhook was not there.
func mistakes(kind string, o runtime.Object) (out []mesh.Problem) {
	for _, e := range manifest.Mistakes(kind, o) {
		out = append(out, mesh.Problem{Field: e.Field, Message: e.Message})
	}
	return out
}

func (k *sink) drop(n name, c *change) {
	delete(k.kept, n)
	if k.kind == "Namespace" {
		c.namespaces = true
		k.source.selection.Forget(n.name)
	}
	k.remove(n, c)
}

// remove takes an object out of the mesh.
func (k *sink) remove(n name, c *change) {
	_, in := k.inMesh[n]
	if _, wrong := k.wrong[n]; in || wrong {
		delete(k.inMesh, n)
		delete(k.wrong, n)
		c.remove = append(c.remove, mesh.Key{Kind: k.kind, Namespace: n.namespace, Name: n.name})
	}
}

func (k *sink) clear() {
	var c change
	for n := range k.inMesh {
		k.drop(n, &c)
	}
	for n := range k.wrong {
		k.drop(n, &c)
	}
	clear(k.kept)
	k.source.update(c)
}

// change is what goes to the store at once.
type change struct {
	apply      []mesh.Object
	remove     []mesh.Key
	namespaces bool // some of them are gone
}

// update gives a change to the store, and lets the selection follow from it; s.mu is held.
func (s *Source) update(c change) {
	s.give(c)
	selectors := false
	for _, o := range c.apply {
		switch o := o.Object.(type) {
		case *corev1.Namespace:
			c.namespaces = s.selection.Learn(o.Name, o.Labels) || c.namespaces
		case *corev1.ConfigMap:
			selectors = true
		}
	}
	for _, k := range c.remove {
		selectors = selectors || k.Kind == "ConfigMap"
	}
	if selectors {
		changed, err := s.selection.Set(s.config.Store.Mesh().GetDiscoverySelectors())
		if err != nil {
			s.log.Error("discoverySelectors not used; the former ones stay in force", "error", err)
		}
		c.namespaces = changed || c.namespaces
	}
	if c.namespaces {
		s.reselect()
	}
}

func (s *Source) give(c change) {
	if len(c.apply)+len(c.remove) == 0 {
		return
	}
	s.config.Changing()
	if err := s.config.Store.Update(c.apply, c.remove); err != nil {
		s.log.Error("configuration not used; what it replaces stays in force", "error", err)
	}
}

// reselect moves objects between the mesh and here; s.mu is held.
func (s *Source) reselect() {
	var c change
	for _, k := range s.namespaced {
		for n, o := range k.kept {
			if s.selection.Includes(n.namespace) {
				delete(k.kept, n)
				k.inMesh[n] = struct{}{}
				c.apply = append(c.apply, mesh.Object{Object: o})
			}
		}
		gone := false
		for n := range k.inMesh {
			if !s.selection.Includes(n.namespace) {
				k.remove(n, &c)
				gone = true
			}
		}
		if gone {
			// The mesh does not give objects back. They may be wanted again.
			k.again()
		}
	}
	s.give(c)
}

func nameOf(o any) (name, error) {
	m, err := meta.Accessor(o)
	if err != nil {
		return name{}, fmt.Errorf("%T: %w", o, err)
	}
	return name{m.GetNamespace(), m.GetName()}, nil
}

var _ metav1.Object = (*unreadable)(nil)
