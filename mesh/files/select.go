package files

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-mesh/weft/mesh"
)

// Feed gives Changes to a store, without the objects of namespaces that MeshConfig.discoverySelectors leave out. It belongs to one goroutine.
type Feed struct {
	store     *mesh.Store
	selection *mesh.Selection
	objects   map[mesh.Key]mesh.Object // those that the selection is about
	inMesh    map[mesh.Key]bool
}

// NewFeed makes a Feed for a store that nobody else writes to.
func NewFeed(store *mesh.Store) *Feed {
	return &Feed{store: store, selection: mesh.NewSelection(), objects: map[mesh.Key]mesh.Object{}, inMesh: map[mesh.Key]bool{}}
}

// selected reports whether discoverySelectors decide about a kind.
func selected(kind string) bool {
	switch kind {
	case "Namespace", "Node", "ConfigMap", "Secret":
		return false
	}
	return true
}

// Give puts a Change into the store. The error names what cannot be used; everything else is in force.
func (f *Feed) Give(c Change) error {
	var apply []mesh.Object
	var remove []mesh.Key
	for _, key := range c.Delete {
		if key.Kind == "Namespace" {
			f.selection.Forget(key.Name)
		}
		delete(f.objects, key)
		delete(f.inMesh, key)
		remove = append(remove, key)
	}
	moved := false
	for _, o := range c.Apply {
		if ns, ok := o.Object.(*corev1.Namespace); ok {
			moved = f.selection.Learn(ns.Name, ns.Labels) || moved
		}
	}
	for _, o := range c.Apply {
		key, err := mesh.KeyOf(o.Object)
		if err != nil {
			return err // of which the Change would not have been made
		}
		if selected(key.Kind) {
			f.objects[key] = o
			if !f.selection.Includes(key.Namespace) {
				if f.inMesh[key] {
					delete(f.inMesh, key)
					remove = append(remove, key)
				}
				continue
			}
			f.inMesh[key] = true
		}
		apply = append(apply, o)
	}
	errs := []error{f.store.Update(apply, remove)}
	changed, err := f.selection.Set(f.store.Mesh().GetDiscoverySelectors())
	if err != nil {
		errs = append(errs, fmt.Errorf("discoverySelectors not used; the former ones stay in force: %w", err))
	}
	if moved || changed {
		errs = append(errs, f.reselect())
	}
	return errors.Join(errs...)
}

// reselect moves objects in and out of the mesh.
func (f *Feed) reselect() error {
	var apply []mesh.Object
	var remove []mesh.Key
	for key, o := range f.objects {
		switch includes := f.selection.Includes(key.Namespace); {
		case includes && !f.inMesh[key]:
			f.inMesh[key] = true
			apply = append(apply, o)
		case !includes && f.inMesh[key]:
			delete(f.inMesh, key)
			remove = append(remove, key)
		}
	}
	return f.store.Update(apply, remove)
}
