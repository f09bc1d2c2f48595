package fleet

import "errors"

// ErrNewer says that an event is of a version of the server that came after this one. An older one cannot know what it
// would leave out, so that it refuses the log as a whole.
var ErrNewer = errors.New("the log was written by a newer version of the server")
