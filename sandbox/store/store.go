package store

import (
	"encoding/json"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// Key names one object. Resource is Kind.Resource().
type Key struct{ Resource, Namespace, Name string }

// String gives "deployments.apps/default/web".
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Resource + "/" + k.Name
	}
	return k.Resource + "/" + k.Namespace + "/" + k.Name
}

// KeyOf is the key of an object of a known kind. It panics for a Go type that
// is not in Kinds: such an object cannot come from a user, only from code.
func KeyOf(o Object) Key {
	k, ok := KindFor(o)
	if !ok {
		panic(fmt.Sprintf("store: %T is not a kind of this sandbox", o))
	}
	key := Key{Resource: k.Resource(), Name: o.GetName()}
	if k.Namespaced {
		key.Namespace = o.GetNamespace()
	}
	return key
}

// EventType says what happened to an object. The words are those of the Kubernetes watch API.
type EventType string

const (
	Added    EventType = "ADDED"
	Modified EventType = "MODIFIED"
	Deleted  EventType = "DELETED"
)

// Event is one change. Old is nil for Added.
type Event struct {
	Type   EventType
	Key    Key
	Object Object
	Old    Object
}

// Store is safe for concurrent use. Objects that come out of it are shared and
// must not be modified: DeepCopy first, or use Update.
type Store struct {
	mu       sync.RWMutex
	objects  map[string]map[Key]Object // by resource
	version  uint64
	watchers map[*Watcher]struct{}
	now      func() time.Time
}

// New returns an empty store.
func New() *Store {
	return &Store{objects: map[string]map[Key]Object{}, watchers: map[*Watcher]struct{}{}, now: time.Now}
}

// Get returns nil when there is no such object.
func (s *Store) Get(k Key) Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.objects[k.Resource][k]
}

// List returns the objects of a resource in one namespace ("" = all) that
// match the selector (nil = all), sorted by namespace and name.
func (s *Store) List(resource, namespace string, selector labels.Selector) []Object {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.list(resource, namespace, selector)
}

func (s *Store) list(resource, namespace string, selector labels.Selector) []Object {
	var out []Object
	for k, o := range s.objects[resource] {
		if namespace != "" && k.Namespace != namespace {
			continue
		}
		if selector != nil && !selector.Matches(labels.Set(o.GetLabels())) {
			continue
		}
		out = append(out, o)
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if a.GetNamespace() != b.GetNamespace() {
			return a.GetNamespace() < b.GetNamespace()
		}
		return a.GetName() < b.GetName()
	})
	return out
}

// Get returns the typed object, or the zero T (nil) when it does not exist.
func Get[T Object](s *Store, resource, namespace, name string) T {
	o, _ := s.Get(Key{resource, namespace, name}).(T)
	return o
}

// List is Store.List with typed results.
func List[T Object](s *Store, resource, namespace string, selector labels.Selector) []T {
	objects := s.List(resource, namespace, selector)
	out := make([]T, 0, len(objects))
	for _, o := range objects {
		if t, ok := o.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

// Create stores a copy of o with UID, creation time, generation and version
// set, and returns it. It fails with AlreadyExists.
func (s *Store) Create(o Object) (Object, error) {
	kind, ok := KindFor(o)
	if !ok {
		return nil, fmt.Errorf("this sandbox does not know %s", o.GetObjectKind().GroupVersionKind())
	}
	o = o.DeepCopyObject().(Object)
	setType(o, kind)
	key := KeyOf(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.objects[key.Resource][key] != nil {
		return nil, apierrors.NewAlreadyExists(kind.GroupResource(), o.GetName())
	}
	if o.GetUID() == "" {
		o.SetUID(uuid.NewUUID())
	}
	o.SetCreationTimestamp(metav1.NewTime(s.now().Truncate(time.Second)))
	o.SetGeneration(1)
	o.SetDeletionTimestamp(nil)
	s.put(key, o, nil)
	return o, nil
}

// Update changes one object: change gets a copy, and what it leaves there is
// stored unless it is equal to what was there. The generation goes up when
// anything but metadata and status changed. It fails with NotFound, or with
// change's error.
func (s *Store) Update(key Key, change func(Object) error) (Object, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.objects[key.Resource][key]
	if old == nil {
		return nil, NotFound(key)
	}
	o := old.DeepCopyObject().(Object)
	if err := change(o); err != nil {
		return nil, err
	}
	if kind, ok := KindFor(o); ok {
		setType(o, kind)
	}
	o.SetUID(old.GetUID())
	o.SetCreationTimestamp(old.GetCreationTimestamp())
	o.SetResourceVersion(old.GetResourceVersion())
	o.SetGeneration(old.GetGeneration())
	if reflect.DeepEqual(old, o) {
		return old, nil
	}
	if specChanged(old, o) {
		o.SetGeneration(old.GetGeneration() + 1)
	}
	s.put(key, o, old)
	return o, nil
}

// Remove takes the object out of the store at once; it returns nil when there was none.
func (s *Store) Remove(key Key) Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.objects[key.Resource][key]
	if old == nil {
		return nil
	}
	delete(s.objects[key.Resource], key)
	s.version++
	gone := old.DeepCopyObject().(Object)
	gone.SetResourceVersion(strconv.FormatUint(s.version, 10))
	s.notify(Event{Type: Deleted, Key: key, Object: gone, Old: old})
	return gone
}

func (s *Store) put(key Key, o, old Object) {
	s.version++
	o.SetResourceVersion(strconv.FormatUint(s.version, 10))
	if s.objects[key.Resource] == nil {
		s.objects[key.Resource] = map[Key]Object{}
	}
	s.objects[key.Resource][key] = o
	t := Modified
	if old == nil {
		t = Added
	}
	s.notify(Event{Type: t, Key: key, Object: o, Old: old})
}

// NotFound is the API server's error for a missing object.
func NotFound(key Key) error {
	gr := schema.GroupResource{Resource: key.Resource}
	if k, ok := Resource(key.Resource); ok {
		gr = k.GroupResource()
	}
	return apierrors.NewNotFound(gr, key.Name)
}

// setType fills in TypeMeta, so that an object describes itself wherever it is
// written. An unstructured object keeps the version its author used.
func setType(o Object, k *Kind) {
	if _, ok := o.(*unstructured.Unstructured); ok {
		return
	}
	o.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{Group: k.Group, Version: k.Version, Kind: k.Kind})
}

func specChanged(a, b Object) bool {
	if _, ok := a.(*corev1.Event); ok {
		return false
	}
	x, errA := desired(a)
	y, errB := desired(b)
	return errA != nil || errB != nil || !reflect.DeepEqual(x, y)
}

// desired is the part of an object its author owns: all but metadata and status.
func desired(o Object) (map[string]any, error) {
	var m map[string]any
	if u, ok := o.(*unstructured.Unstructured); ok {
		m = make(map[string]any, len(u.Object))
		for k, v := range u.Object {
			m[k] = v
		}
	} else {
		b, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(b, &m); err != nil {
			return nil, err
		}
	}
	delete(m, "metadata")
	delete(m, "status")
	return m, nil
}

// Decode makes an object of the right Go type from JSON. Unknown fields are
// dropped; package api reports them before it comes here.
func Decode(data []byte) (Object, error) {
	u := &unstructured.Unstructured{}
	if err := u.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	k, ok := KindOf(u.GroupVersionKind())
	if !ok {
		return nil, fmt.Errorf("this sandbox does not know %s %s", u.GetAPIVersion(), u.GetKind())
	}
	if k.New == nil {
		return u, nil
	}
	o := k.New()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
		return nil, err
	}
	return o, nil
}
