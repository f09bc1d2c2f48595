// Package guest is the conversation between a host and PID 1 of a microVM: the messages, their framing, and the
// host's end of it (Host). The guest's end is in package pid1.
//
// Two byte streams carry it, a control channel and a log channel, so that a flood of output cannot starve a stop or a
// health probe. docs/specs/guest-protocol.md describes every byte; the vectors in testdata pin it down.
//
// The host's end treats whatever comes out of a VM as hostile: every frame, text and list has a cap, reading is
// throttled, waiting has a deadline, and a broken rule closes the session. The package knows nothing of images,
// releases or drivers, and it imports only the standard library's small parts because it is linked into the guest's
// init too.
package guest
