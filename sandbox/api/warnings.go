package api

import "context"

type warningsKey struct{}

// WithWarnings makes take hear what a user should be told about an object that is accepted all the same: an API
// server sends it along with its answer, and kubectl prints it as "Warning: ...".
func WithWarnings(ctx context.Context, take func(text string)) context.Context {
	return context.WithValue(ctx, warningsKey{}, take)
}

func warn(ctx context.Context, text string) {
	if take, ok := ctx.Value(warningsKey{}).(func(string)); ok {
		take(text)
	}
}
