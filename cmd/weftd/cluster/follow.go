package cluster

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// objects is what client-go has for one kind, in a namespace or in all of them.
type objects[List runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (List, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

// listWatch lists and watches those objects that the selectors of chosen select.
func listWatch[List runtime.Object](api objects[List], chosen metav1.ListOptions) *cache.ListWatch {
	choose := func(o metav1.ListOptions) metav1.ListOptions {
		o.FieldSelector, o.LabelSelector = chosen.FieldSelector, chosen.LabelSelector
		return o
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return api.List(ctx, choose(o))
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return api.Watch(ctx, choose(o))
		},
	}
}

// named chooses the objects of a name. Rights that are for certain names allow no other lists and watches.
func named(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()}
}

// followOne calls set with the one object of a name, and again each time that it has become another, until ctx ends; with
// nil when it is not there. kind is an empty object.
func followOne[T, List runtime.Object](ctx context.Context, kind T, api objects[List], name string, set func(T)) {
	cache.NewReflectorWithOptions(listWatch(api, named(name)), kind, sole[T](set), cache.ReflectorOptions{Name: "weftd"}).RunWithContext(ctx)
}

// sole takes what the API server says about one object. It is a cache.ReflectorStore.
type sole[T runtime.Object] func(T)

func (s sole[T]) set(o any) error {
	current, _ := o.(T)
	s(current)
	return nil
}

func (s sole[T]) Add(o any) error    { return s.set(o) }
func (s sole[T]) Update(o any) error { return s.set(o) }
func (s sole[T]) Delete(any) error   { return s.set(nil) }
func (s sole[T]) Resync() error      { return nil }
func (s sole[T]) Replace(list []any, _ string) error {
	if len(list) == 0 {
		return s.set(nil)
	}
	return s.set(list[0])
}
