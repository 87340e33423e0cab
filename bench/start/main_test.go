package main

import (
	"testing"
	"time"
)

func TestFiguresAreThoseOfThePods(t *testing.T) {
	var starts []start
	for i := 1; i <= 21; i++ {
		ms := time.Duration(i*100) * time.Millisecond
		starts = append(starts, start{admitted: ms / 100, app: ms / 2, ready: ms})
	}
	got := summarize("hook", starts)
	want := result{Gate: "hook", N: 21, Median: 1100, P95: 2000, Min: 100, Max: 2100, Admitted: 11, App: 550}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if q := quantile([]float64{1, 2}, 0.5); q != 1.5 {
		t.Errorf("the median of 1 and 2 is %v", q)
	}
}
