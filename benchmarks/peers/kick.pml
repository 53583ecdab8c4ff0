/* The protocol that app/explore searches, as a hand-made model for SPIN: one transaction (KICK, DELETE m1, DELETE
   m2, CREATE, RESUME), guests that spin, halt, do device I/O or touch either page, in any order, for ever. Same
   question as `kickstand explore --variant sticky --behaviour well --property missing_slot`; -DLOST asks lost_exit,
   -DCLOSED closed_window, -DDEADLOCK deadlock. -DCARELESS is the userspace that calls KVM_RUN again at once. The
   variants: -DCLEAR is clear_on_exit, -DCHECK check_not_test, -DBEFORE clear_before_up_write, -DAFTER
   clear_after_up_write, -DNONE none. -DN=3 is the number of vCPUs. */
#ifdef CHECK
#define CLEAR
#define TAKE_ASLEEP(i) req[i] = 0
#else
#define TAKE_ASLEEP(i) skip
#endif
#ifdef CLEAR
#define TAKE(i) req[i] = 0
#else
#define TAKE(i) skip
#endif
#ifdef LOST
#define LOSES(leave) assert(!leave)
#else
#define LOSES(leave) skip
#endif
#if defined(CLOSED)
#define ACCESS(s) atomic { slot = s; assert(!window) }
#elif defined(LOST) || defined(DEADLOCK)
#define ACCESS(s) slot = s
#else
#define ACCESS(s) slot = s; assert(slot)
#endif
#ifndef N
#define N 2
#endif
bit req[N], mode[N], ipi[N], blocked[N], wake[N];
bit slot1 = 1, slot2 = 1, writer, wwait, paused, window;
byte readers;

proctype vcpu(byte i) {
	bit halted, leave, slot;
again:	atomic { (!writer && !wwait) -> readers++ }
round:	if
	:: halted ->
sleep:		blocked[i] = 1;
		if
		:: atomic { req[i] -> TAKE_ASLEEP(i) }
		:: else ->
end_asleep:		atomic { wake[i] -> wake[i] = 0 }; goto sleep
		fi;
		atomic { blocked[i] = 0; wake[i] = 0 }
	:: else ->
		if
		:: atomic { req[i] -> TAKE(i) }; goto out
		:: else -> mode[i] = 1
		fi;
		if
		:: req[i] -> goto exit
		:: else -> skip
		fi;
guest:		if
		:: ipi[i] -> goto exit
		:: else ->
			if
			:: goto guest
			:: halted = 1; goto exit
			:: leave = 1; goto exit
			:: ACCESS(slot1); goto guest
			:: ACCESS(slot2); goto guest
			fi
		fi;
exit:		mode[i] = 0;
		ipi[i] = 0
	fi;
	if
	:: atomic { req[i] -> TAKE(i); LOSES(leave); leave = 0 }; goto out
	:: else -> skip
	fi;
	if
	:: leave -> leave = 0; readers--; goto again
	:: else -> goto round
	fi;
out:	readers--;
#ifndef CARELESS
	(!paused);
#endif
	goto again
}

proctype vmm() {
	byte k;
	paused = 1;
#ifndef NONE
	for (k : 0 .. N - 1) {
		req[k] = 1;
		if
		:: blocked[k] -> wake[k] = 1
		:: else ->
			if
			:: mode[k] -> ipi[k] = mode[k] /* outside guest mode it is taken at once */
			:: else -> skip
			fi
		fi
	}
	for (k : 0 .. N - 1) { (!ipi[k]) }
	wwait = 1;
	atomic { (readers == 0 && !writer) -> writer = 1; wwait = 0 }
#ifdef BEFORE
	for (k : 0 .. N - 1) { req[k] = 0 }
#endif
	writer = 0;
#ifdef AFTER
	for (k : 0 .. N - 1) { req[k] = 0 }
#endif
#endif
	window = 1;
	slot1 = 0;
	slot2 = 0;
	atomic { slot1 = 1; slot2 = 1 }
	window = 0;
	for (k : 0 .. N - 1) { req[k] = 0 }
	paused = 0
}

init {
	byte k;
	atomic {
		for (k : 0 .. N - 1) { run vcpu(k) }
		run vmm()
	}
}
