package mesh

import (
	"errors"
	"fmt"
	"maps"

	meshconfig "istio.io/api/mesh/v1alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Selection is the set of namespaces that the mesh looks at
// (Istio API: MeshConfig.discoverySelectors): those that match any selector, all when there is none.
type Selection struct {
	selectors []labels.Selector
	labels    map[string]map[string]string // of all namespaces
	chosen    map[string]bool              // meaningless without selectors
}

// NewSelection selects all namespaces.
func NewSelection() *Selection {
	return &Selection{labels: map[string]map[string]string{}, chosen: map[string]bool{}}
}

// Includes reports whether the objects of a namespace count.
func (s *Selection) Includes(namespace string) bool {
	return len(s.selectors) == 0 || s.chosen[namespace]
}

// Learn takes in the labels of a namespace and reports whether objects move because of them.
func (s *Selection) Learn(namespace string, l map[string]string) (moved bool) {
	if old, ok := s.labels[namespace]; ok && maps.Equal(old, l) {
		return false
	}
	s.labels[namespace] = l
	return s.choose(namespace)
}

// Forget drops a namespace that is gone.
func (s *Selection) Forget(namespace string) {
	delete(s.labels, namespace)
	delete(s.chosen, namespace)
}

// Set replaces the selectors. When one of them is invalid all former ones stay.
func (s *Selection) Set(in []*meshconfig.LabelSelector) (moved bool, err error) {
	next := make([]labels.Selector, 0, len(in))
	var errs []error
	for i, selector := range in {
		l := &metav1.LabelSelector{MatchLabels: selector.GetMatchLabels()}
		for _, e := range selector.GetMatchExpressions() {
			l.MatchExpressions = append(l.MatchExpressions, metav1.LabelSelectorRequirement{Key: e.Key, Operator: metav1.LabelSelectorOperator(e.Operator), Values: e.Values})
		}
		parsed, err := metav1.LabelSelectorAsSelector(l)
		if err != nil {
			errs = append(errs, fmt.Errorf("discoverySelectors[%d]: %w", i, err))
			continue
		}
		next = append(next, parsed)
	}
	if len(errs) > 0 {
		return false, errors.Join(errs...)
	}
	if selectorText(s.selectors) == selectorText(next) {
		return false, nil
	}
	s.selectors = next
	for ns := range s.labels {
		s.choose(ns)
	}
	return true, nil
}

func (s *Selection) choose(namespace string) (moved bool) {
	was, is := s.chosen[namespace], false
	for _, selector := range s.selectors {
		is = is || selector.Matches(labels.Set(s.labels[namespace]))
	}
	s.chosen[namespace] = is
	return was != is && len(s.selectors) > 0
}

func selectorText(selectors []labels.Selector) (out string) {
	for _, s := range selectors {
		out += s.String() + ";"
	}
	return out
}
